"""Webhooks as they were first decided on, so that a job has one outcome whatever dies.

A job that is done again, after a crash say, has other times in its webhook, or fails where it
went well before. What was kept first, ``_waveflow/outcomes/{event}.json``, stands.
"""

from __future__ import annotations

import json

from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.outcomes import HASH_CHECK, Webhook

PREFIX = "_waveflow/outcomes/"


def keep(bucket: Bucket, webhook: Webhook) -> Webhook:
    """Keep a webhook; returns the one that was kept first for its job.

    A /hash-check has no times, is the same by itself, and is not kept.

    Raises:
        JobError: ``storage_unavailable``.
    """
    if webhook.path == HASH_CHECK:
        return webhook
    fields = {"id": webhook.id, "path": webhook.path, "status": webhook.status}
    content = json.dumps(fields | {"body": webhook.body.decode()}).encode()
    if bucket.put_if(_key(webhook), content, "application/json", None) is None:
        return kept(bucket, webhook)
    return webhook


def kept(bucket: Bucket, webhook: Webhook) -> Webhook:
    """The webhook that was kept for the same job, if any; else this one."""
    found = bucket.get(_key(webhook))
    if found is None:
        return webhook
    fields = json.loads(found[0])
    return Webhook(
        fields["id"], fields["path"], fields["body"].encode(), webhook.subject, fields["status"]
    )


def forget(bucket: Bucket, webhook: Webhook) -> None:
    """The job may be done anew: an operator will replay it."""
    bucket.delete(_key(webhook))


def _key(webhook: Webhook) -> str:
    return f"{PREFIX}{webhook.id.rpartition('_')[0]}.json"
