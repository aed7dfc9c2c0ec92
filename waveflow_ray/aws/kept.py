"""Webhooks as they were first decided on, so that every repetition is the same to the byte."""

from __future__ import annotations

from dataclasses import replace

from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.outcomes import HASH_CHECK, Webhook

PREFIX = "_waveflow/outcomes/"


def keep(bucket: Bucket, webhook: Webhook) -> Webhook:
    """Keep a webhook; returns the one that was kept first under its id.

    A job that is done again, after a crash say, has other times in its webhook. A /hash-check
    has none, and is not kept.

    Raises:
        JobError: ``storage_unavailable``.
    """
    if webhook.path == HASH_CHECK:
        return webhook
    key = f"{PREFIX}{webhook.id}.json"
    if bucket.put_if(key, webhook.body, "application/json", None) is None:
        kept = bucket.get(key)
        if kept is not None:
            return replace(webhook, body=kept[0])
    return webhook
