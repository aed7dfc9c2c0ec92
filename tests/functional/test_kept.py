"""Webhooks that are kept: the first one under an id is what is sent, whoever asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import pytest

from tests.support import World
from waveflow_ray.aws.kept import PREFIX, forget, keep, kept
from waveflow_ray.outcomes import COMPLETION, HASH_CHECK, Webhook


@pytest.fixture
def webhook() -> Webhook:
    return Webhook(f"msg_{uuid4().hex}_success", COMPLETION, b'{"a":1}', "stem:1", "SUCCESS")


def test_the_first_one_stands(world: World, webhook: Webhook) -> None:
    assert keep(world.bucket, webhook) == webhook
    assert keep(world.bucket, replace(webhook, body=b'{"a":2}')) == webhook


def test_a_job_has_one_outcome(world: World, webhook: Webhook) -> None:
    """A failure after a success says what was said; until an operator wants it done anew."""
    failure = replace(
        webhook, id=webhook.id.replace("success", "failure"), body=b"{}", status="FAILURE"
    )
    keep(world.bucket, webhook)
    assert keep(world.bucket, failure) == kept(world.bucket, failure) == webhook
    forget(world.bucket, failure)
    assert kept(world.bucket, failure) == failure
    assert keep(world.bucket, failure) == failure
    assert keep(world.bucket, webhook) == failure


def test_one_of_many_at_the_same_time_stands(world: World, webhook: Webhook) -> None:
    several = [replace(webhook, body=b"%d" % number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        kept = set(pool.map(lambda one: keep(world.bucket, one).body, several))
    assert len(kept) == 1


def test_a_hash_check_costs_nothing(world: World, webhook: Webhook) -> None:
    """It is the same by itself."""
    check = replace(webhook, path=HASH_CHECK)
    assert keep(world.bucket, check) == check
    assert not [key for key, _ in world.bucket.keys(PREFIX) if check.id[:20] in key]
