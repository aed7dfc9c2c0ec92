"""health_check and cleanup_temp_files: nothing is reported, the log tells.

health   asks everything the service depends on: bucket, queue, main server, Ray's nodes.
cleanup  sweeps the service's own scratch folder on the node it runs on. Jobs leave nothing
         there; this is for what a file system without anonymous files may keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import requests

from waveflow_ray.audio.scratch import sweep
from waveflow_ray.aws.s3 import bucket_of
from waveflow_ray.aws.sqs import queue_of
from waveflow_ray.settings import Settings

WEBHOOK_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """One thing that was asked: whether it is well, and what it said, in `seconds`."""

    name: str
    ok: bool
    detail: str
    seconds: float


def health(settings: Settings, nodes: list[dict[str, Any]] | None = None) -> list[Check]:
    """Ask everything the service depends on.

    Args:
        nodes: what Ray says of its nodes; None where there is no cluster to ask.
    """
    checks = [
        _check("s3", lambda: _bucket(settings)),
        _check("sqs", lambda: _queue(settings)),
        _check("webhook", lambda: _main_server(settings)),
    ]
    if nodes is not None:
        checks.append(_check("ray", lambda: _nodes(nodes)))
    return checks


def report(checks: list[Check]) -> dict[str, Any]:
    """The checks as one JSON object."""
    return {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}


def cleanup(settings: Settings) -> list[str]:
    """Remove old files from this node's scratch folder. Returns their paths."""
    return [str(path) for path in sweep(settings.scratch_dir, settings.cleanup_age_s)]


def node_summary(nodes: list[dict[str, Any]]) -> str:
    """Nodes, CPUs and memory in one line."""
    cpus = sum(node["cpus"] for node in nodes)
    memory_gb = sum(node["memory_gb"] for node in nodes)
    busy = "".join(
        f"; {node['host']}: CPU {node['cpu_percent']:.0f} %, memory {node['memory_percent']:.0f} %"
        for node in nodes
        if "cpu_percent" in node
    )
    return f"{len(nodes)} nodes, {cpus:g} CPUs, {memory_gb:.1f} GB for tasks{busy}"


def _check(name: str, ask: Callable[[], str]) -> Check:
    started = time.perf_counter()
    try:
        ok, detail = True, ask()
    except Exception as error:  # whatever is wrong with it is the answer
        ok, detail = False, f"{type(error).__name__}: {error}"
    return Check(name, ok, detail, round(time.perf_counter() - started, 3))


def _bucket(settings: Settings) -> str:
    bucket_of(settings).reachable()
    return f"bucket {settings.s3_bucket_name}"


def _queue(settings: Settings) -> str:
    facts = queue_of(settings).facts()
    dead_letters = "no dead-letter queue" if facts.dlq_url is None else "dead-letter queue set"
    return f"{facts.visible} waiting, {facts.in_flight} in flight, {dead_letters}"


def _main_server(settings: Settings) -> str:
    # Any answer will do: the address has no page of its own.
    answer = requests.get(
        settings.webhook_url, timeout=WEBHOOK_PROBE_TIMEOUT_S, allow_redirects=False
    )
    return f"answers ({answer.status_code})"


def _nodes(nodes: list[dict[str, Any]]) -> str:
    if not nodes:
        raise RuntimeError("no node is alive, or the cluster of RAY_ADDRESS does not answer")
    return node_summary(nodes)
