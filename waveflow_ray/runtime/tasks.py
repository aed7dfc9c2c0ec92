"""What runs in worker processes. Imports little: it is what a new worker waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray

from waveflow_ray.aws.s3 import bucket_of
from waveflow_ray.jobs import perform
from waveflow_ray.jobs.standing import standing
from waveflow_ray.jobs.work import Work
from waveflow_ray.logs import configure_logging
from waveflow_ray.messages import Job, MixJob
from waveflow_ray.outcomes import Outcome
from waveflow_ray.runtime.light import do_alone, do_together
from waveflow_ray.runtime.placement import CELLS_PER_MIX, HEAVY, LIGHT, TOGETHER, WARM_UP
from waveflow_ray.settings import Settings


def do_job(
    job: Job,
    settings: Settings,
    cpus: int,
    nodes: list[dict[str, Any]] | None,
    again: bool = False,
) -> Outcome:
    """One attempt at a job, in a worker process.

    Args:
        again: the message was received before, so the job may have had its outcome.
        cpus: of the whole cluster; how far a mix is spread out.
        nodes: what Ray says of its nodes, for a health job.
    """
    configure_logging(settings.log_level, settings.log_format)
    parallelism = min(cpus, CELLS_PER_MIX)
    work = Work(settings)
    render = None
    if isinstance(job, MixJob):
        from waveflow_ray.runtime.cells import render_on_ray  # see `jobs`

        render = render_on_ray(settings, parallelism)
    outcome = perform(
        job,
        settings,
        work=work,
        render=render,
        parallelism=parallelism,
        nodes=nodes,
        in_worker=True,
    )
    return standing(job, outcome, work.bucket, again=again)


def warm_up(settings: Settings, waits_for: list[Any]) -> Iterator[None]:
    """Make a worker ready before its first job: importing this module is most of it.

    Args:
        waits_for: references; when it is ready, it waits until they can be had.
    """
    bucket_of(settings)
    yield
    if waits_for:
        ray.wait(waits_for)


def compile_loops() -> None:
    """See `audio.warm`. Only a release that was sent to the nodes has something to compile."""
    from waveflow_ray.audio.warm import warm  # it needs numba, which few workers do

    warm()


light_task: Any = ray.remote(**LIGHT)(do_job)
heavy_task: Any = ray.remote(**HEAVY)(do_job)
alone_task: Any = ray.remote(**LIGHT)(do_alone)
together_task: Any = ray.remote(**TOGETHER)(do_together)
warm_up_task: Any = ray.remote(**WARM_UP)(warm_up)
compile_task: Any = ray.remote(**HEAVY)(compile_loops)
