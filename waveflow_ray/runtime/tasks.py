"""What runs in worker processes. The ingress imports it, too, and does not wait for what only the
work needs: that is imported where it is done.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from waveflow_ray.logs import configure_logging
from waveflow_ray.messages import Job, MixJob
from waveflow_ray.outcomes import Outcome
from waveflow_ray.runtime.lightwork import LightWork, Result
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
    from waveflow_ray.jobs import perform
    from waveflow_ray.jobs.standing import standing
    from waveflow_ray.jobs.work import Work

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


def do_alone(work: LightWork, settings: Settings) -> Result:
    """See `light.do_alone`."""
    from waveflow_ray.runtime import light

    return light.do_alone(work, settings)


def do_together(
    group: Sequence[LightWork], settings: Settings
) -> Iterator[list[tuple[int, Result]]]:
    """See `light.do_together`."""
    from waveflow_ray.runtime import light

    yield from light.do_together(group, settings)


def warm_up(settings: Settings, waits_for: list[Any]) -> Iterator[None]:
    """Make a worker ready before its first job: imports are most of it.

    Args:
        waits_for: references; when it is ready, it waits until they can be had.
    """
    from waveflow_ray.aws.s3 import bucket_of
    from waveflow_ray.runtime import light  # noqa: F401 # with all that jobs need, but mixes

    bucket_of(settings)
    gc.freeze()  # see the reporter
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
