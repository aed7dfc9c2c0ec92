"""Light work in a worker process: several jobs together end as each would alone."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.support import World
from waveflow_ray.aws.s3 import Bucket, Download
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.messages import DuplicateJob, HashJob
from waveflow_ray.outcomes import COMPLETION, Outcome, Webhook
from waveflow_ray.runtime.light import do_alone, do_together
from waveflow_ray.runtime.lightwork import Do, Forget, Keep, LightWork, Result
from waveflow_ray.settings import Settings


def together(group: list[LightWork], settings: Settings) -> dict[int, Result]:
    parts = list(do_together(group, settings))
    results = {number: result for part in parts for number, result in part}
    assert len(results) == sum(len(part) for part in parts) == len(group), "each once"
    return results


def test_jobs_together_end_as_each_would_alone(world: World, settings: Settings) -> None:
    """Hashes, a missing file, a copy to delete and a webhook to keep, in one group."""
    for number in range(6):
        world.bucket.put(f"light/{number}.wav", bytes([number]) * 1000, "audio/wav")
    hashes = [HashJob(job_id=f"h{n}", stemId=f"s{n}", filepath=f"light/{n}.wav") for n in range(7)]
    copy = DuplicateJob(job_id="d", stemId="d", filepath="light/5.wav", audio_hash="00" * 32)
    kept = Webhook("msg_light_failure", COMPLETION, b'{"a":1}', "stem:1", "FAILURE")
    group = [*(Do(job, False) for job in hashes), Do(copy, False), Keep(kept)]
    results = together(group, settings)
    for number in range(6):
        outcome = results[number]
        assert isinstance(outcome, Outcome)
        assert outcome.webhook is not None
        payload = json.loads(outcome.webhook.body)
        assert payload["audio_hash"] == hashlib.sha256(bytes([number]) * 1000).hexdigest()
        assert payload["stemId"] == f"s{number}"
        assert do_alone(Do(hashes[number], False), settings).webhook == outcome.webhook  # type: ignore[union-attr]
    for number, code in ((6, ErrorCode.OBJECT_NOT_FOUND), (7, ErrorCode.HASH_MISMATCH)):
        failed = results[number]
        assert isinstance(failed, Outcome)
        assert failed.error is not None
        assert failed.error.code is code
    assert results[8] == kept
    assert together([Keep(kept), Forget(kept)], settings)[1] == kept


def test_what_meets_a_limit_or_breaks_in_company_is_done_alone(
    world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory limit is everybody's there, so it says nothing about one of them."""
    world.bucket.put("light/a.wav", b"a", "audio/wav")
    fine = HashJob(job_id="fine", stemId="s", filepath="light/a.wav")
    greedy = HashJob(job_id="greedy", stemId="s", filepath="light/greedy.wav")
    plain = Bucket.hash

    def hungry(self: Bucket, key: str) -> Download:
        if "greedy" in key:
            raise MemoryError
        return plain(self, key)

    monkeypatch.setattr(Bucket, "hash", hungry)
    results = together([Do(fine, False), Do(greedy, False)], settings)
    assert isinstance(results[0], Outcome)
    assert results[1] is None
    alone = do_alone(Do(greedy, False), settings)
    assert isinstance(alone, Outcome)
    assert alone.error is not None


def test_storage_that_is_away_is_told(settings: Settings) -> None:
    """Keeping a webhook has no outcome of its own to fail with."""
    nowhere = settings.model_copy(update={"s3_bucket_name": "no-such-bucket"})
    webhook = Webhook("msg_x_failure", COMPLETION, b"{}", "stem:1", "FAILURE")
    assert isinstance(do_alone(Keep(webhook), nowhere), JobError)
