"""The outcome of a job that stands, whichever attempt is the last."""

from __future__ import annotations

from dataclasses import replace

from waveflow_ray.aws.kept import keep, kept
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.errors import JobError
from waveflow_ray.messages import HashJob, Job
from waveflow_ray.outcomes import Outcome, failed


def standing(job: Job, outcome: Outcome, bucket: Bucket, *, again: bool) -> Outcome:
    """The outcome with the webhook that was kept first for this job.

    Args:
        again: the message was received before, so the job may have had its outcome.
    """
    if outcome.webhook is None or outcome.status == "FAILURE":
        return outcome  # it may not be the last attempt
    try:
        webhook = keep(bucket, outcome.webhook)
        if again and isinstance(job, HashJob):
            webhook = kept(bucket, webhook)
    except JobError as error:
        return failed(job, error, outcome.usage)
    return replace(outcome, webhook=webhook, status=webhook.status, kept=True)
