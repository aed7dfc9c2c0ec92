"""One file per kind of job, readable top to bottom; `perform` runs any of them."""

from __future__ import annotations

import logging
import traceback
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from waveflow_ray.errors import ErrorCode, JobError, internal_error
from waveflow_ray.jobs import analysis, duplicate, hash, maintenance
from waveflow_ray.jobs.limits import check_limits
from waveflow_ray.jobs.work import (
    TimeUp,
    Work,
    memory_limit,
    reset_peak_memory,
    time_limit,
    too_much_memory,
)
from waveflow_ray.messages import (
    AnalysisJob,
    CleanupJob,
    DuplicateJob,
    HashJob,
    HealthJob,
    Job,
    MixJob,
)
from waveflow_ray.outcomes import Outcome, failed, success
from waveflow_ray.settings import Settings

if TYPE_CHECKING:
    from waveflow_ray.jobs.mix import Render

logger = logging.getLogger(__name__)

__all__ = ["perform"]


def perform(
    job: Job,
    settings: Settings,
    *,
    work: Work | None = None,
    render: Render | None = None,
    parallelism: int = 1,
    nodes: list[dict[str, Any]] | None = None,
    in_worker: bool = False,
) -> Outcome:
    """Do one attempt at a job. Never raises for anything that the job's input can cause.

    Args:
        work: the means; made from the settings if not given.
        render: runs a mix's cells; in this process if not given.
        parallelism: how many cells of a mix may run at a time.
        nodes: what Ray says of its nodes, for a health job.
        in_worker: this process is a worker of its own that may end itself if a decoder hangs.
    """
    if in_worker:
        reset_peak_memory()
    work = work or Work(settings)
    try:
        with time_limit(settings.job_timeout_s, hard=in_worker), _memory(settings, in_worker):
            check_limits(job, settings)
            result, notes = _run(job, work, render, parallelism, nodes)
    except JobError as error:
        return failed(job, error, work.usage())
    except TimeUp:
        return failed(job, _timeout(settings), work.usage())
    except MemoryError:
        return failed(job, too_much_memory(settings), work.usage())
    except Exception as error:
        logger.exception("job %s (%s) broke", job.job_id, job.kind)
        return failed(job, _internal(error), work.usage())
    usage = work.usage()
    return Outcome(
        status="SUCCESS" if notes.get("ok", True) else "FAILURE",
        webhook=success(job, result, processing_s=sum(usage.seconds.values())),
        usage=usage,
        notes=notes,
    )


def _run(
    job: Job,
    work: Work,
    render: Render | None,
    parallelism: int,
    nodes: list[dict[str, Any]] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(job, HashJob):
        return hash.run(job, work), {}
    if isinstance(job, DuplicateJob):
        return duplicate.run(job, work), {}
    if isinstance(job, AnalysisJob):
        return analysis.run(job, work), {}
    if isinstance(job, MixJob):
        from waveflow_ray.jobs import mix  # with numba: 0.6 s and 65 MB that only mixes need

        return mix.run(job, work, render or mix.render_here(work), parallelism), work.notes
    if isinstance(job, HealthJob):
        return {}, maintenance.report(maintenance.health(work.settings, nodes))
    if isinstance(job, CleanupJob):
        return {}, {"removed": maintenance.cleanup(work.settings)}
    raise TypeError(f"no code for {job.kind} jobs")


def _memory(settings: Settings, in_worker: bool) -> AbstractContextManager[None]:
    return memory_limit(settings.job_memory_mb) if in_worker else nullcontext()


def _timeout(settings: Settings) -> JobError:
    return JobError(
        ErrorCode.TIMEOUT,
        f"The file took longer than {settings.job_timeout_s:g} seconds to process.",
    )


def _internal(error: Exception) -> JobError:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return internal_error(f"{type(error).__name__}: {error} at {where.name}:{where.lineno}")
