"""One node of the cluster: drained before it is taken away."""

from __future__ import annotations

import time

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled; as `ray drain-node` does
from ray.core.generated import autoscaler_pb2

from waveflow_ray.runtime.app import ServiceError, join

DEADLINE_MARGIN_S = 5
"""Ray has to be gone before the machine is, so that it is seen to be gone."""


def drain_this_node(deadline_s: int) -> None:
    """No new tasks here; after `deadline_s` seconds Ray ends here.

    Raises:
        ServiceError: there is no Ray here, or it refuses.
    """
    join("auto")
    context = ray.get_runtime_context()
    at_ms = int((time.time() + max(0, deadline_s - DEADLINE_MARGIN_S)) * 1000)
    accepted, why = GcsClient(address=context.gcs_address).drain_node(
        context.get_node_id(),
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # type: ignore[attr-defined] # generated
        "the instance is taken away",
        at_ms,
    )
    if not accepted:
        raise ServiceError(f"Ray does not drain this node: {why}")
