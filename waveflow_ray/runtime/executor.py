"""Jobs as Ray tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from waveflow_ray.errors import internal_error
from waveflow_ray.messages import (
    AnalysisJob,
    CleanupJob,
    DuplicateJob,
    HashJob,
    HealthJob,
    Job,
)
from waveflow_ray.outcomes import Outcome, Webhook, failed, lost_worker
from waveflow_ray.runtime.batches import Batches, LostError
from waveflow_ray.runtime.demand import HEAVY_CPUS
from waveflow_ray.runtime.lightwork import IN_A_TASK, Do, Forget, Keep, LightWork, Result
from waveflow_ray.runtime.nodes import alive_nodes, cluster_nodes
from waveflow_ray.runtime.placement import (
    HEAVY_QUEUED,
    LIGHT_PER_CPU,
    LOST_WORKER,
    MIXES_PER_CPU,
    TRIES,
)
from waveflow_ray.runtime.slots import Slots
from waveflow_ray.runtime.tasks import (
    alone_task,
    compile_task,
    heavy_task,
    light_task,
    together_task,
    warm_up_task,
)
from waveflow_ray.settings import Settings

logger = logging.getLogger(__name__)

KEEPING = "keep"
"""Name of tasks that keep or forget webhooks."""


class RayExecutor:
    """Does jobs as Ray tasks."""

    def __init__(self, settings: Settings) -> None:
        self._settings_ref = ray.put(settings)
        self._cpus = 1
        self._workers: list[Any] = []
        self._light: Batches[LightWork, Result] = Batches(self._send, IN_A_TASK)

    async def run(self, job: Job, *, again: bool) -> Outcome:
        """One attempt; started again at once if the worker or its node died, but only once.

        With others in its worker it has none of the blame: then it is started again alone.
        """
        if isinstance(job, HashJob | DuplicateJob):
            try:
                outcome = await self._light.insist(Do(job, again), TRIES, partial(_log_loss, job))
            except LostError as lost:
                return _blamed(job, lost.cause)
            assert isinstance(outcome, Outcome)
            return outcome
        task = heavy_task if isinstance(job, AnalysisJob) else light_task
        nodes = await asyncio.to_thread(cluster_nodes) if isinstance(job, HealthJob) else None
        error: Exception = RuntimeError("not started")
        for _ in range(TRIES):
            ref = task.options(name=job.kind).remote(
                job, self._settings_ref, self._cpus, nodes, again
            )
            try:
                done: Outcome = await _stopped_if_cancelled(ref)
                return done
            except ray.exceptions.RayError as lost:
                error = lost
                _log_loss(job, lost)
        return _blamed(job, error)

    async def _send(self, group: Sequence[LightWork]) -> AsyncIterator[list[tuple[int, Result]]]:
        """Do light work as one task; see `Batches`."""
        kinds = {work.job.kind if isinstance(work, Do) else KEEPING for work in group}
        name = kinds.pop() if len(kinds) == 1 else "light"
        if len(group) == 1:
            ref = alone_task.options(name=name).remote(group[0], self._settings_ref)
            yield [(0, await _stopped_if_cancelled(ref))]
            return
        results = together_task.options(name=name).remote(group, self._settings_ref)
        try:
            async for some in results:
                yield await some
        except asyncio.CancelledError:
            ray.cancel(results, force=True)
            raise

    async def keep(self, webhook: Webhook) -> Webhook:
        """See `keep`; where that cannot be had, the webhook as it is."""
        kept = await self._note(Keep(webhook), "a webhook was not kept")
        return kept if isinstance(kept, Webhook) else webhook

    async def forget(self, webhook: Webhook) -> None:
        """See `forget`."""
        await self._note(Forget(webhook), "a webhook was not forgotten")

    async def _note(self, work: Keep | Forget, trouble: str) -> Result:
        """Change what is kept; a trouble is logged."""
        fields = {"webhook_id": work.webhook.id}
        result: Result | LostError
        try:
            result = await self._light.insist(work, TRIES, lambda _cause: None)
        except LostError as lost:
            result = lost
        if not isinstance(result, Webhook):
            logger.warning(trouble, extra={"fields": fields | {"cause": str(result)[:500]}})
        return result if isinstance(result, Webhook) else None

    async def warm_up(self, until: Any = None) -> None:
        """Have workers ready on every node: one for each CPU, and one for light jobs.

        Args:
            until: a reference for which they wait when they are ready. Ray ends workers that are
                idle while others are busy, as they are when a version takes over from another.
        """
        waits_for = [] if until is None else [until]
        workers = [
            warm_up_task.options(name="warm up", scheduling_strategy=_on(node)).remote(
                self._settings_ref, waits_for
            )
            for node in await asyncio.to_thread(alive_nodes)
            if (cpus := int(node["Resources"].get("CPU", 0)))
            for _ in range(cpus + 1)
        ]
        for worker in workers:
            await (await anext(worker))
        self._workers = workers  # for as long as they wait

    async def compile(self) -> None:
        """Have every node compile what mixes need, where that does not lie ready."""
        for_each = [
            compile_task.options(name="compile", scheduling_strategy=_on(node)).remote()
            for node in await asyncio.to_thread(alive_nodes)
            if node["Resources"].get("CPU")
        ]
        await asyncio.gather(*for_each)

    async def clean(self) -> Outcome:
        """Sweep the scratch folder of every node."""
        removed: list[str] = []
        nodes = await asyncio.to_thread(alive_nodes)
        for node in nodes:
            task = light_task.options(num_cpus=0, scheduling_strategy=_on(node), name="cleanup")
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
        tasks = max(2, int(cpus * LIGHT_PER_CPU))
        self._light.resize(tasks)
        return Slots(
            light=tasks * IN_A_TASK,
            heavy=int(cpus / HEAVY_CPUS) + HEAVY_QUEUED,
            mixes=int(cpus * MIXES_PER_CPU),
        )


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    """Placed on a node; elsewhere if that is gone."""
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)


def _log_loss(job: Job, cause: Exception) -> None:
    fields = {"job_id": job.job_id, "cause": type(cause).__name__}
    logger.warning("a worker was lost", extra={"fields": fields})


def _blamed(job: Job, error: Exception) -> Outcome:
    """The outcome of a job that ended its workers, or that Ray could not do."""
    if isinstance(error, LOST_WORKER):
        return failed(job, lost_worker(job, TRIES))
    return failed(job, internal_error(f"{type(error).__name__}: {str(error)[:500]}"))


async def _stopped_if_cancelled(ref: Any) -> Any:
    """The result of a task, which ends with whoever waits for it."""
    try:
        return await ref
    except asyncio.CancelledError:
        ray.cancel(ref, force=True)
        raise
