"""Makes waveflow.json, the Grafana dashboard: `python cluster/grafana/dashboard.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Panel = dict[str, Any]
Query = tuple[str, str]
"""PromQL, and the legend of its series."""

FILE = Path(__file__).with_name("waveflow.json")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
PRICES = {"spot": "0.02", "ondemand": "0.05"}
"""US dollars an hour, for a node of 2 CPUs and 4 GB: to be set to what is paid."""

RATE = "$__rate_interval"
NODES = "max by (type) (ray_waveflow_nodes)"
COST = (
    '(sum(max by (type) (ray_waveflow_nodes{type!="spot"})) * $price_ondemand'
    ' + sum(max by (type) (ray_waveflow_nodes{type="spot"})) * $price_spot)'
)
CPU = "ray_waveflow_cpu_seconds_total"


def rate(metric: str, by: str, window: str = RATE) -> str:
    """Per second, of all processes together."""
    return f"sum by ({by}) (rate({metric}[{window}]))"


def quantile(q: float, metric: str, by: str, labels: str = "") -> str:
    """Of a histogram."""
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{labels}[5m])))"


def stat(
    title: str, expr: str, unit: str, steps: list[tuple[str, float | None]], **more: Any
) -> Panel:
    """One number, coloured by thresholds: (colour, from which value)."""
    thresholds = [{"color": color, "value": value} for color, value in steps]
    defaults = {
        "unit": unit,
        "noValue": more.pop("nothing", "–"),
        "mappings": more.pop("mappings", []),
        "thresholds": {"mode": "absolute", "steps": thresholds},
    }
    return {
        "type": "stat",
        "title": title,
        "description": more.pop("about", ""),
        "targets": targets([(expr, "")]),
        "fieldConfig": {"defaults": defaults | more, "overrides": []},
        "options": {"colorMode": "background", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "gridPos": {"w": 4, "h": 4},
    }


def lines(title: str, unit: str, *queries: Query, about: str = "", stack: bool = False) -> Panel:
    """Lines over time."""
    custom = {"fillOpacity": 10, "showPoints": "never"}
    if stack:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal"}}
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "targets": targets(queries),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "gridPos": {"w": 8, "h": 8},
    }


def targets(queries: Any) -> list[dict[str, Any]]:
    return [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for i, (expr, legend) in enumerate(queries)
    ]


def values(**texts: str) -> list[dict[str, Any]]:
    """Words for the numbers `_0` and `_1`."""
    options = {name.strip("_"): {"text": text} for name, text in texts.items()}
    return [{"type": "value", "options": options}]


GOOD_BAD: list[tuple[str, float | None]] = [("green", None), ("red", 1)]
PLAIN: list[tuple[str, float | None]] = [("blue", None)]

NOW = [
    stat(
        "Ingress",
        "count(max by (version) (ray_waveflow_build_info))",
        "none",
        [("red", None), ("green", 1)],
        nothing="absent",
        mappings=values(_1="runs"),
    ),
    stat(
        "Main server",
        "max(ray_waveflow_main_server_away)",
        "none",
        GOOD_BAD,
        mappings=values(_0="takes webhooks", _1="away"),
    ),
    stat(
        "Oldest job in hand",
        "max(ray_waveflow_oldest_job_age_seconds)",
        "s",
        [("green", None), ("orange", 120), ("red", 600)],
        about="From when its message was sent.",
    ),
    stat(
        "Messages waiting",
        'max(ray_waveflow_queue_messages{state="visible"})',
        "short",
        [("green", None), ("orange", 500), ("red", 5000)],
    ),
    stat(
        "Failing",
        'sum(increase(ray_waveflow_jobs_total{outcome="FAILURE", kind!="rejected"}[15m]))'
        ' / (sum(increase(ray_waveflow_jobs_total{kind!="rejected"}[15m])) > 0)',
        "percentunit",
        [("green", None), ("orange", 0.05), ("red", 0.2)],
        about="Of the jobs that ended in the last 15 minutes.",
    ),
    stat("Dead letters", "max(ray_waveflow_dead_letters)", "short", GOOD_BAD),
]

KEEPING_UP = [
    lines(
        "Queue",
        "short",
        ("max by (state) (ray_waveflow_queue_messages)", "{{state}}"),
    ),
    lines(
        "Age of the oldest job in hand",
        "s",
        ("max(ray_waveflow_oldest_job_age_seconds)", "age"),
    ),
    lines(
        "Jobs that ended, per minute",
        "short",
        (f"60 * {rate('ray_waveflow_jobs_total', 'kind')}", "{{kind}}"),
        stack=True,
    ),
    lines(
        "Jobs in hand",
        "short",
        ("sum by (stage) (max by (kind, stage) (ray_waveflow_jobs_in_hand))", "{{stage}}"),
        stack=True,
    ),
    lines(
        "Running jobs and slots",
        "short",
        (
            'sum by (kind) (max by (kind, stage) (ray_waveflow_jobs_in_hand{stage="running"}))',
            "{{kind}}",
        ),
        ("max by (size) (ray_waveflow_slots)", "slots: {{size}}"),
        about="At their slots, more nodes would help.",
    ),
    lines("Nodes", "short", (NODES, "{{type}}"), stack=True),
    lines(
        "CPUs wanted",
        "short",
        ("max(ray_waveflow_cpus_wanted)", "for TARGET_LATENCY_S"),
        about="What the autoscaler is asked for. Beyond max_workers, the target is missed.",
    ),
]

FAILING = [
    lines(
        "Failures, per hour",
        "short",
        (f"3600 * {rate('ray_waveflow_failures_total', 'kind, code')}", "{{kind}} {{code}}"),
    ),
    lines(
        "Attempts to be repeated, per hour",
        "short",
        (f"3600 * {rate('ray_waveflow_retries_total', 'kind, code')}", "{{kind}} {{code}}"),
    ),
    lines(
        "Dead letters written, per hour",
        "short",
        (f"3600 * {rate('ray_waveflow_dead_letters_written_total', 'code')}", "{{code}}"),
    ),
    lines(
        "Webhooks sent, per minute",
        "short",
        (
            f"60 * {rate('ray_waveflow_webhooks_total', 'path, status, verdict')}",
            "{{path}} {{status}} {{verdict}}",
        ),
    ),
    lines(
        "Leases, per hour",
        "short",
        (f"3600 * {rate('ray_waveflow_leases_lost_total', 'kind')}", "lost: {{kind}}"),
        (
            "3600 * " + rate('ray_waveflow_lease_renewals_total{result!="renewed"}', "result"),
            "renewals {{result}}",
        ),
    ),
    lines(
        "Time since the ingress began",
        "s",
        ("time() - max(ray_waveflow_ingress_start_time_seconds)", "ingress"),
        about="It falls to 0 with every restart.",
    ),
    lines(
        "Alerts",
        "short",
        (
            'sum by (alertname) (ALERTS{alertname=~"Waveflow.+", alertstate="firing"})',
            "{{alertname}}",
        ),
        about="docs/operations.md says what to do.",
        stack=True,
    ),
]

SLOW = [
    lines(
        "From message to webhook, 95 %",
        "s",
        (quantile(0.95, "ray_waveflow_job_seconds", "kind"), "{{kind}}"),
    ),
    lines(
        "Waiting in the queue, 95 %",
        "s",
        (quantile(0.95, "ray_waveflow_stage_seconds", "kind", '{stage="queue"}'), "{{kind}}"),
    ),
    lines(
        "Stages, 95 %",
        "s",
        (
            quantile(0.95, "ray_waveflow_stage_seconds", "kind, stage", '{kind=~"$kind"}'),
            "{{kind}} {{stage}}",
        ),
    ),
    lines(
        "Stages, on average",
        "s",
        (
            'sum by (kind, stage) (rate(ray_waveflow_stage_seconds_sum{kind=~"$kind"}[5m]))'
            ' / sum by (kind, stage) (rate(ray_waveflow_stage_seconds_count{kind=~"$kind"}[5m]))',
            "{{kind}} {{stage}}",
        ),
    ),
    lines(
        "Memory of a job, 99 %",
        "bytes",
        (quantile(0.99, "ray_waveflow_peak_memory_bytes", "kind"), "{{kind}}"),
    ),
    lines(
        "Nodes: CPU and memory in use",
        "percent",
        ("avg by (instance) (ray_node_cpu_utilization)", "CPU {{instance}}"),
        ("100 * max by (instance) (ray_node_mem_used / ray_node_mem_total)", "memory {{instance}}"),
    ),
]

COSTS = [
    stat("Nodes, an hour", COST, "currencyUSD", PLAIN, about="At the prices above.", decimals=3),
    stat(
        "An hour of audio",
        f"avg_over_time({COST}[1h:1m]) / (sum(rate(ray_waveflow_audio_seconds_total[1h])) > 0)",
        "currencyUSD",
        PLAIN,
        about="Of the last hour: all nodes, by what was analysed and mixed.",
        decimals=5,
    ),
    stat(
        "1,000 jobs",
        f"avg_over_time({COST}[1h:1m]) / (3.6 * sum(rate(ray_waveflow_jobs_total[1h])) > 0)",
        "currencyUSD",
        PLAIN,
        about="Of the last hour: all nodes, by the jobs that ended.",
        decimals=5,
    ),
    stat(
        "CPU used by jobs",
        f"sum(rate({CPU}[1h])) / scalar(sum(ray_node_cpu_count))",
        "percentunit",
        PLAIN,
        about="Of the last hour, of all CPUs of the cluster.",
    ),
    stat("Audio, last 24 h", "sum(increase(ray_waveflow_audio_seconds_total[24h]))", "s", PLAIN),
    stat("Jobs, last 24 h", "sum(increase(ray_waveflow_jobs_total[24h]))", "short", PLAIN),
    lines(
        "Cost an hour, by type of node",
        "currencyUSD",
        ('max by (type) (ray_waveflow_nodes{type!="spot"}) * $price_ondemand', "{{type}}"),
        ('max by (type) (ray_waveflow_nodes{type="spot"}) * $price_spot', "{{type}}"),
        stack=True,
    ),
    lines(
        "Cost an hour, by kind of job",
        "currencyUSD",
        (
            f"{rate(CPU, 'kind', '1h')} / scalar(sum(rate({CPU}[1h])) > 0) * scalar({COST})",
            "{{kind}}",
        ),
        about="All nodes, shared out by the CPU that the jobs of a kind took.",
        stack=True,
    ),
    lines("CPU seconds a second", "short", (rate(CPU, "kind"), "{{kind}}"), stack=True),
    lines(
        "Seconds of audio a second",
        "short",
        (rate("ray_waveflow_audio_seconds_total", "kind"), "{{kind}}"),
        stack=True,
    ),
    lines("Read from S3", "Bps", (rate("ray_waveflow_read_bytes_total", "kind"), "{{kind}}")),
    lines("Written to S3", "Bps", (rate("ray_waveflow_written_bytes_total", "kind"), "{{kind}}")),
]

ROWS = {
    "Now": NOW,
    "Is it keeping up?": KEEPING_UP,
    "Is anything failing?": FAILING,
    "What is slow?": SLOW,
    "What does it cost?": COSTS,
}


def textbox(name: str, label: str, default: str) -> dict[str, Any]:
    current = {"text": default, "value": default}
    return {
        "type": "textbox",
        "name": name,
        "label": label,
        "query": default,
        "current": current,
        "options": [current | {"selected": True}],
    }


VARIABLES = [
    {"type": "datasource", "name": "datasource", "label": "Source", "query": "prometheus"},
    {
        "type": "query",
        "name": "kind",
        "label": "Kind",
        "datasource": SOURCE,
        "query": {"query": "label_values(ray_waveflow_jobs_total, kind)", "refId": "kind"},
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    },
    textbox("price_spot", "Spot node, $ an hour", PRICES["spot"]),
    textbox("price_ondemand", "Other node, $ an hour", PRICES["ondemand"]),
]


def dashboard() -> dict[str, Any]:
    """The whole of it; panels stand side by side as far as they fit."""
    panels: list[Panel] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )
        y, x, height = y + 1, 0, 0
        for panel in row:
            size = panel["gridPos"]
            if x + size["w"] > WIDTH:
                x, y = 0, y + height
            panels.append(panel | {"datasource": SOURCE, "gridPos": {"x": x, "y": y, **size}})
            x, height = x + size["w"], size["h"]
        y += height
    return {
        "uid": "waveflow",
        "title": "WaveFlow",
        "tags": ["waveflow", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": VARIABLES},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
