"""The rules of Prometheus and the dashboard of Grafana speak of metrics that there are."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.prometheus import DASHBOARD, RULES, dashboard_queries, rules
from waveflow_ray.metrics import TABLE

FOLDER = RULES.parent
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
QUERIES = {
    **{f"dashboard {n}": query for n, query in enumerate(dashboard_queries())},
    **{rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()},
}
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed; it is in Debian's package prometheus"
)


def exported() -> dict[str, set[str]]:
    """Names as Prometheus gets them, with their labels."""
    names = {}
    for metric in TABLE:
        labels = set(metric.labels)
        if metric.kind == "histogram":
            names |= {f"ray_{metric.name}_{end}": labels for end in ("sum", "count")}
            names[f"ray_{metric.name}_bucket"] = labels | {"le"}
        else:
            names[f"ray_{metric.name}"] = labels
    return names


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_metric_of_a_query_exists(query: str) -> None:
    """With the labels by which it is chosen. What else is asked for is Ray's own, or recorded."""
    names = exported()
    found = re.findall(r"\b(ray_waveflow_\w+)(?:\{([^}]*)\})?", query)
    for name, chosen in found:
        assert name in names
        assert set(re.findall(r"(\w+)\s*[=!]~?", chosen)) <= names[name], name
    assert set(re.findall(r"\bwaveflow:[\w:]+", query)) <= RECORDED
    assert found or "waveflow:" in query or re.search(r"\b(ray_node_\w+|up|ALERTS)\b", query)


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_grouping_is_by_labels_that_there_are(query: str) -> None:
    """`by (knid)` would be answered with one series, and nobody would notice."""
    labels = set().union(*exported().values()) | {"instance", "ip", "alertname"}
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        assert set(re.findall(r"\w+", group)) <= labels


def test_every_metric_is_used() -> None:
    """What is measured can be seen."""
    text = "\n".join(QUERIES.values())
    assert [metric.name for metric in TABLE if metric.name not in text] == []


def test_the_dashboard_is_what_its_script_makes() -> None:
    """Whoever changes it changes cluster/grafana/dashboard.py."""
    script = runpy.run_path(str(DASHBOARD.with_name("dashboard.py")))
    assert DASHBOARD.read_text(encoding="utf-8") == script["text"]()


def test_panels_neither_overlap_nor_leave_the_screen() -> None:
    script = runpy.run_path(str(DASHBOARD.with_name("dashboard.py")))
    taken: set[tuple[int, int]] = set()
    for panel in script["dashboard"]()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "waveflow.rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_has_no_complaints(arguments: tuple[str, ...]) -> None:
    """The files are right, and the alerts fire when they should and not otherwise."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    """Its queries, as the expressions of rules."""
    assert PROMTOOL is not None
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, query in enumerate(dashboard_queries()):
        lines += [f"  - record: q:{number}", "    expr: |", f"      {query}"]
    file = tmp_path / "dashboard.yml"
    file.write_text("\n".join(lines))
    done = subprocess.run(
        [PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    """Each fires in a test of rules_test.yml."""
    text = (FOLDER / "rules_test.yml").read_text(encoding="utf-8")
    fired = set(re.findall(r"alertname: (\w+)\n.*\n\s+exp_alerts:\n", text))
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}
