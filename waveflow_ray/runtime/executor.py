"""Jobs as Ray tasks."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from waveflow_ray.errors import JobError, internal_error
from waveflow_ray.messages import AnalysisJob, CleanupJob, HealthJob, Job
from waveflow_ray.outcomes import Outcome, Webhook, failed, lost_worker
from waveflow_ray.runtime.demand import HEAVY_CPUS
from waveflow_ray.runtime.ingress import Slots
from waveflow_ray.runtime.placement import (
    HEAVY_QUEUED,
    LIGHT_PER_CPU,
    LOST_WORKER,
    TRIES,
)
from waveflow_ray.runtime.tasks import (
    forget_task,
    heavy_task,
    keep_task,
    light_task,
    warm_up_task,
)
from waveflow_ray.settings import Settings

logger = logging.getLogger(__name__)


class RayExecutor:
    """Does jobs as Ray tasks."""

    def __init__(self, settings: Settings) -> None:
        self._settings_ref = ray.put(settings)
        self._cpus = 1

    async def run(self, job: Job, *, again: bool) -> Outcome:
        """One attempt; started again at once if the worker or its node died, but only once."""
        task = heavy_task if isinstance(job, AnalysisJob) else light_task
        nodes = await asyncio.to_thread(cluster_nodes) if isinstance(job, HealthJob) else None
        error: Exception = RuntimeError("not started")
        for _ in range(TRIES):
            ref = task.options(name=job.kind).remote(
                job, self._settings_ref, self._cpus, nodes, again
            )
            try:
                outcome: Outcome = await ref
                return outcome
            except asyncio.CancelledError:
                ray.cancel(ref, force=True)
                raise
            except ray.exceptions.RayError as lost:
                error = lost
                fields = {"job_id": job.job_id, "cause": type(lost).__name__}
                logger.warning("a worker was lost", extra={"fields": fields})
        if isinstance(error, LOST_WORKER):
            return failed(job, lost_worker(job, TRIES))
        return failed(job, internal_error(f"{type(error).__name__}: {str(error)[:500]}"))

    async def keep(self, webhook: Webhook) -> Webhook:
        """See `keep`; where that cannot be had, the webhook as it is."""
        try:
            kept: Webhook = await keep_task.options(name="keep").remote(webhook, self._settings_ref)
        except (JobError, ray.exceptions.RayError) as error:
            fields = {"webhook_id": webhook.id, "cause": str(error)[:500]}
            logger.warning("a webhook was not kept", extra={"fields": fields})
            return webhook
        return kept

    async def forget(self, webhook: Webhook) -> None:
        """See `forget`."""
        try:
            await forget_task.options(name="forget").remote(webhook, self._settings_ref)
        except (JobError, ray.exceptions.RayError) as error:
            fields = {"webhook_id": webhook.id, "cause": str(error)[:500]}
            logger.warning("a webhook was not forgotten", extra={"fields": fields})

    async def warm_up(self) -> None:
        """Start a worker for every CPU there is, so that the first jobs find them ready."""
        resources = await asyncio.to_thread(ray.cluster_resources)
        task = warm_up_task.options(name="warm up")
        await asyncio.gather(
            *(task.remote(self._settings_ref) for _ in range(int(resources.get("CPU", 0))))
        )

    async def clean(self) -> Outcome:
        """Sweep the scratch folder of every node."""
        removed: list[str] = []
        nodes = await asyncio.to_thread(alive_nodes)
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            task = light_task.options(num_cpus=0, scheduling_strategy=here, name="cleanup")
            job = CleanupJob(job_id="cleanup")
            outcome: Outcome = await task.remote(job, self._settings_ref, 1, None)
            host = node["NodeManagerHostname"]
            removed += [f"{host}:{path}" for path in outcome.notes.get("removed", [])]
        return Outcome("SUCCESS", None, notes={"removed": removed})

    async def slots(self) -> Slots:
        """Sized by the CPUs of the cluster."""
        resources = await asyncio.to_thread(ray.cluster_resources)
        cpus = resources.get("CPU", 0.0)
        self._cpus = max(1, int(cpus))
        return Slots(
            light=max(2, int(cpus * LIGHT_PER_CPU)), heavy=int(cpus / HEAVY_CPUS) + HEAVY_QUEUED
        )


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
