"""What is asked of Ray's autoscaler, if there is one.

It starts spot instances first, by the priorities in ray-cluster.yaml. When AWS refuses them it
tries again and again, and never the other type: so what is missing then is asked for on demand, by
the label `market` of the node types.

It also does nothing at all for a request that is larger than `max_workers` permits. How much that
is it tells nobody, so the request is what there is and what is coming, and some nodes or one more.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import ray

from waveflow_ray.runtime.demand import next_request

if TYPE_CHECKING:
    from ray.autoscaler.v2.schema import ClusterStatus

MARKET = "market"
SPOT, ON_DEMAND = "spot", "on-demand"
REFUSED_FOR_S = 300.0
"""So long after the last refusal, instances on demand are started instead."""
NODE_CPUS = 2
STEPS = (4 * NODE_CPUS, NODE_CPUS)
"""More at a time while that is permitted; one by one up to the last node."""


def asker() -> Callable[[int], Awaitable[None]]:
    """A function that has at least so many CPUs in the cluster, and keeps them.

    To be called again and again while there are fewer.
    """
    steps = itertools.cycle(STEPS)

    async def ask_for_cpus(count: int) -> None:
        await asyncio.to_thread(_ask_for_cpus, count, next(steps))

    return ask_for_cpus


def _ask_for_cpus(count: int, step: int) -> None:
    # Imported here: the ingress has nothing to ask for while it starts.
    from ray.autoscaler.sdk import request_resources
    from ray.autoscaler.v2.sdk import get_cluster_status

    have = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call] # Ray has none
    if count <= have:
        request_resources(num_cpus=count)
        return
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    refused = _spot_is_refused(status)
    launches = [launch for launch in status.pending_launches if not (refused and _spot(launch))]
    nodes = len(status.pending_nodes) + sum(launch.count for launch in launches)
    total = next_request(count, have, nodes * NODE_CPUS, step)
    on_demand = total - have if refused else 0
    bundles: list[dict[str, Any]] = [{"CPU": 1}] * total
    selectors: list[dict[str, Any]] = [{}] * (total - on_demand)
    selectors += [{MARKET: ON_DEMAND}] * on_demand
    request_resources(bundles=bundles, bundle_label_selectors=selectors)


def _spot_is_refused(status: ClusterStatus) -> bool:
    """Whether spot instances were asked for and not given, a short while ago."""
    now = time.time()
    return any(
        _spot(launch) and now - (launch.failed_ts_s or 0.0) < REFUSED_FOR_S
        for launch in status.failed_launches
    )


def _spot(launch: Any) -> bool:
    return SPOT in launch.ray_node_type_name
