"""What light tasks are given, and give back. Imports little: the ingress starts with it."""

from __future__ import annotations

from dataclasses import dataclass

from waveflow_ray.errors import JobError
from waveflow_ray.messages import DuplicateJob, HashJob
from waveflow_ray.outcomes import Outcome, Webhook

IN_A_TASK = 10
"""Light jobs in a task, at most: they mostly wait for S3, and a task costs more than a job."""


@dataclass(frozen=True)
class Do:
    """One attempt at a light job; `again` if its message was received before."""

    job: HashJob | DuplicateJob
    again: bool


@dataclass(frozen=True)
class Keep:
    """See `aws.kept.keep`."""

    webhook: Webhook


@dataclass(frozen=True)
class Forget:
    """See `aws.kept.forget`."""

    webhook: Webhook


LightWork = Do | Keep | Forget
Result = Outcome | Webhook | JobError | None
"""None: it has to be done alone."""
