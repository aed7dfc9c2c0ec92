"""What runs in worker processes. Imports little: it is what a new worker waits for."""

from __future__ import annotations

from typing import Any

import ray

from waveflow_ray.jobs import perform
from waveflow_ray.logs import configure_logging
from waveflow_ray.messages import Job
from waveflow_ray.outcomes import Outcome
from waveflow_ray.runtime.cells import render_on_ray
from waveflow_ray.runtime.placement import CELLS_PER_MIX, HEAVY, LIGHT
from waveflow_ray.settings import Settings


def do_job(job: Job, settings: Settings, cpus: int, nodes: list[dict[str, Any]] | None) -> Outcome:
    """One attempt at a job, in a worker process.

    Args:
        cpus: of the whole cluster; how far a mix is spread out.
        nodes: what Ray says of its nodes, for a health job.
    """
    configure_logging(settings.log_level, settings.log_format)
    parallelism = min(cpus, CELLS_PER_MIX)
    return perform(
        job,
        settings,
        render=render_on_ray(settings, parallelism),
        parallelism=parallelism,
        nodes=nodes,
        in_worker=True,
    )


def warm_up(settings: Settings) -> None:
    """Make a worker ready before its first job: importing this module is most of it."""
    from waveflow_ray.aws.s3 import bucket_of

    bucket_of(settings)


light_task: Any = ray.remote(**LIGHT)(do_job)
heavy_task: Any = ray.remote(**HEAVY)(do_job)
warm_up_task: Any = ray.remote(**HEAVY)(warm_up)
