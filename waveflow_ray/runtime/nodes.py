"""The nodes of the cluster, as Ray knows them."""

from __future__ import annotations

from typing import Any

import psutil
import ray


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's entries of the nodes that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray has no type
    return [node for node in nodes if node["Alive"]]


def cluster_nodes() -> list[dict[str, Any]]:
    """The living nodes: host, CPUs, memory, and how busy this one is."""
    here = ray.get_runtime_context().get_node_id()
    nodes = []
    for node in alive_nodes():
        entry = {
            "host": node["NodeManagerHostname"],
            "cpus": node["Resources"].get("CPU", 0.0),
            "memory_gb": node["Resources"].get("memory", 0.0) / 2**30,
        }
        if node["NodeID"] == here:
            entry["cpu_percent"] = psutil.cpu_percent(0.1)
            entry["memory_percent"] = psutil.virtual_memory().percent
        nodes.append(entry)
    return nodes
