"""How tasks and actors are placed: all of Ray's options, in one place.

| piece                        | placed                                                        |
| ---------------------------- | ------------------------------------------------------------- |
| Ingress, Reporter            | on the head, no CPU of their own, restarted for ever          |
| hash, duplicate, maintenance | light: a fifth of a CPU; several jobs in a task               |
| analysis, a mix's cells      | heavy: four fifths of a CPU, so light jobs always find room   |
| a mix's reduce               | light: it waits for its cells most of the time                |

Ray retries nothing by itself (``max_retries=0``): retries go through SQS. Nothing of ours stays on
a worker node, so the autoscaler can take any that is idle.
"""

from __future__ import annotations

from typing import Any

import ray

from waveflow_ray.runtime.demand import HEAVY_CPUS, LIGHT_CPUS

NAMESPACES = ("waveflow", "waveflow-b")
"""Of the actors. One is in use; the other is for the next version while it takes over."""
INGRESS = "ingress"
REPORTER = "reporter-"

# A worker is renewed after so many jobs, against leaks in what decodes. A new one costs over a
# second of CPU: after 100 hash jobs that would be more than the jobs themselves.
LIGHT: dict[str, Any] = {
    "max_retries": 0,
    "max_calls": 5000,
    "num_cpus": LIGHT_CPUS,
    "memory": 150 * 2**20,
}
TOGETHER: dict[str, Any] = {
    **LIGHT,
    "max_calls": 500,  # of ten jobs each
    "num_returns": "streaming",
}
HEAVY: dict[str, Any] = {
    "max_retries": 0,
    "max_calls": 250,
    "num_cpus": HEAVY_CPUS,
    "memory": 500 * 2**20,
}
CELL: dict[str, Any] = {
    "max_retries": 0,
    "num_cpus": HEAVY_CPUS,
    "memory": 500 * 2**20,
}
WARM_UP: dict[str, Any] = {
    "max_retries": 0,
    "num_cpus": 0,
    "num_returns": "streaming",
}
STREAMED: dict[str, Any] = {
    "num_returns": "streaming",
    # A cell waits when the reduce falls behind, so the object store holds little of any mix.
    "_generator_backpressure_num_objects": 4,
}
ACTOR: dict[str, Any] = {
    "num_cpus": 0,
    "resources": {"node:__internal_head__": 0.001},
    "max_restarts": -1,
    # Every job in hand waits in a call of its own; the default would be 1000 of them.
    "max_concurrency": 20_000,
}

CELLS_PER_MIX = 8
CELLS_AHEAD = 2
"""Cells of a mix that wait while so many run: no CPU waits for the reduce to send the next."""
MIXES_PER_CPU = 0.5
"""Mixes at a time. Their sums and their cells share the CPUs: with more, cells wait for CPUs that
sums hold, every mix takes longer, and so do all together (docs/performance.md)."""
LIGHT_PER_CPU = 2
"""Light tasks at a time."""
IN_A_POST = 20
"""Webhooks in a call of a reporter, at most."""
POSTS_AT_A_TIME = 1
"""Calls of a reporter under way together, but for those that wait for a slow answer."""
HEAVY_QUEUED = 2
"""Heavy tasks beyond what fits: no CPU waits for the ingress, and the autoscaler sees demand."""
TRIES = 2
"""A task whose worker or node died is started once more."""
LOST_WORKER = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
"""Ends of a worker process that the file at work may have caused."""
