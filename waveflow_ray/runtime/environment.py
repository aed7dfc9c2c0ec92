"""What Ray's processes have to find in their environment. No Ray in here."""

from __future__ import annotations

WORKERS_PER_CPU = 3
"""Worker processes that a node keeps while they are idle. Ray keeps as many as there are CPUs and
ends the others after a second; then every mix, which takes one more, would start a process."""
TASKS_SHOWN = 10_000
"""Ended tasks that Ray keeps for its dashboard; by default it is 100,000, some 400 MB."""
MEMORY_THRESHOLD = 0.9
"""Part of a node's memory at which Ray ends a worker; what a job may take is limited before."""


def ray_environment(cpus: int, actors: int) -> dict[str, str]:
    """Variables for the Ray of a node.

    Args:
        cpus: of the node.
        actors: of the service, which Ray counts among the workers.
    """
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_num_workers_soft_limit": str(WORKERS_PER_CPU * cpus + actors),
        "RAY_task_events_max_num_task_in_gcs": str(TASKS_SHOWN),
        "RAY_memory_usage_threshold": str(MEMORY_THRESHOLD),
    }
