"""What is asked of Ray's autoscaler, if there is one.

It starts spot instances first, by the priorities in ray-cluster.yaml. When AWS refuses them it
tries again and again, and never the other type: so what is missing then is asked for on demand, by
the label `market` of the node types.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status

MARKET = "market"
SPOT, ON_DEMAND = "spot", "on-demand"
REFUSED_FOR_S = 300.0
"""So long after the last refusal, instances on demand are started instead."""


async def ask_for_cpus(count: int) -> None:
    """Have at least so many CPUs in the cluster, and keep them."""
    await asyncio.to_thread(_ask_for_cpus, count)


def _ask_for_cpus(count: int) -> None:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray has no type
    missing = count - int(resources.get("CPU", 0))
    if missing <= 0 or not _spot_is_refused():
        request_resources(num_cpus=count)
        return
    bundles: list[dict[str, Any]] = [{"CPU": 1}] * count
    selectors: list[dict[str, Any]] = [{}] * (count - missing) + [{MARKET: ON_DEMAND}] * missing
    request_resources(bundles=bundles, bundle_label_selectors=selectors)


def _spot_is_refused() -> bool:
    """Whether spot instances were asked for and not given, a short while ago."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    now = time.time()
    return any(
        SPOT in launch.ray_node_type_name and now - (launch.failed_ts_s or 0.0) < REFUSED_FOR_S
        for launch in status.failed_launches
    )
