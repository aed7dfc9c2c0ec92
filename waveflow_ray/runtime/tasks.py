"""What runs in worker processes. Imports little: it is what a new worker waits for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray

from waveflow_ray.aws.kept import forget, keep, kept
from waveflow_ray.aws.s3 import bucket_of
from waveflow_ray.errors import JobError
from waveflow_ray.jobs import perform
from waveflow_ray.jobs.work import Work
from waveflow_ray.logs import configure_logging
from waveflow_ray.messages import HashJob, Job
from waveflow_ray.outcomes import Outcome, Webhook, failed
from waveflow_ray.runtime.cells import render_on_ray
from waveflow_ray.runtime.placement import CELLS_PER_MIX, HEAVY, LIGHT
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
    outcome = perform(
        job,
        settings,
        work=work,
        render=render_on_ray(settings, parallelism),
        parallelism=parallelism,
        nodes=nodes,
        in_worker=True,
    )
    if outcome.webhook is None or outcome.status == "FAILURE":
        return outcome  # it may not be the last attempt
    try:
        webhook = keep(work.bucket, outcome.webhook)
        if again and isinstance(job, HashJob):
            webhook = kept(work.bucket, webhook)
    except JobError as error:
        return failed(job, error, outcome.usage)
    return replace(outcome, webhook=webhook, status=webhook.status, kept=True)


def keep_webhook(webhook: Webhook, settings: Settings) -> Webhook:
    """See `keep`."""
    return keep(bucket_of(settings), webhook)


def forget_webhook(webhook: Webhook, settings: Settings) -> None:
    """See `forget`."""
    forget(bucket_of(settings), webhook)


def warm_up(settings: Settings) -> None:
    """Make a worker ready before its first job: importing this module is most of it."""
    bucket_of(settings)


light_task: Any = ray.remote(**LIGHT)(do_job)
heavy_task: Any = ray.remote(**HEAVY)(do_job)
keep_task: Any = ray.remote(**LIGHT)(keep_webhook)
forget_task: Any = ray.remote(**LIGHT)(forget_webhook)
warm_up_task: Any = ray.remote(**HEAVY)(warm_up)
