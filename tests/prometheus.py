"""Asks a Prometheus every query of the Grafana dashboard and of the rules.

python -m tests.prometheus http://localhost:9090

`check_queries` is for whoever runs a Prometheus beside a cluster. `samples` reads what the nodes
serve, without Prometheus.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "cluster" / "grafana" / "waveflow.json"
RULES = ROOT / "cluster" / "prometheus" / "waveflow.rules.yml"
TIMEOUT_S = 30.0

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(name, labels) -> value."""


@dataclass(frozen=True)
class Answer:
    """What Prometheus made of a query: how many series, or why it failed."""

    query: str
    series: int = 0
    error: str = ""


def dashboard_queries(path: Path = DASHBOARD) -> list[str]:
    """Every query of the dashboard, with its variables filled in."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    given = {"__rate_interval": "1m"}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "textbox":
            given[variable["name"]] = variable["query"]
        elif variable["type"] == "query":
            given[variable["name"]] = variable["allValue"]
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    return [re.sub(r"\$(\w+)", lambda name: given[name[1]], query) for query in queries]


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    """Recording and alerting rules."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def ask(url: str, query: str) -> Answer:
    """One query, as of now."""
    response = requests.get(f"{url}/api/v1/query", params={"query": query}, timeout=TIMEOUT_S)
    answer = response.json()
    if answer["status"] != "success":
        return Answer(query, error=answer["error"])
    result = answer["data"]["result"]
    return Answer(query, len(result) if answer["data"]["resultType"] == "vector" else 1)


def ask_all(url: str) -> list[Answer]:
    """Every query of the dashboard and of the rules."""
    asked = dict.fromkeys([*dashboard_queries(), *(rule["expr"] for rule in rules())])
    return [ask(url, query) for query in asked]


def check_queries(prometheus_url: str) -> list[str]:
    """The queries of dashboard and rules that this Prometheus refuses, and why."""
    return [f"{a.query}: {a.error}" for a in ask_all(prometheus_url) if a.error]


def samples(targets: Path) -> Samples:
    """What the nodes of a cluster serve of ours, without the labels that Ray adds.

    Where several processes report the same, as an ingress and its successor do, it is summed up.

    Args:
        targets: the file that Ray's head writes for Prometheus.
    """
    found: Samples = {}
    if not targets.exists():
        return found
    for target in json.loads(targets.read_text())[0]["targets"]:
        try:
            text = requests.get(f"http://{target}/metrics", timeout=TIMEOUT_S).text
        except requests.ConnectionError:  # of a node that has just left
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.startswith("ray_waveflow_"):
                    continue
                own = {k: v for k, v in sample.labels.items() if k.islower() and k[:5] != "otel_"}
                key = sample.name.removeprefix("ray_"), tuple(sorted(own.items()))
                found[key] = found.get(key, 0.0) + sample.value
    return found


def main() -> None:
    answers = ask_all(sys.argv[1])
    for answer in answers:
        state = "FAIL" if answer.error else f"{answer.series:4}" if answer.series else "   –"
        print(state, " ".join(answer.query.split()), answer.error)
    empty = sum(not answer.series and not answer.error for answer in answers)
    print(f"{len(answers)} queries, {empty} without data")
    sys.exit(any(answer.error for answer in answers))


if __name__ == "__main__":
    main()
