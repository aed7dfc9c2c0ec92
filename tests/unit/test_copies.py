"""However jobs that delete copies of the same bytes are interleaved, a copy stays."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from waveflow_ray.aws.copies import MOST_ENTRIES, PREFIX, Copies
from waveflow_ray.aws.s3 import Download
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs import duplicate
from waveflow_ray.jobs import hash as hashing
from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import DuplicateJob, HashJob

DATA = b"a recording"
NAME = "job-"
SHA256 = hashlib.sha256(DATA).hexdigest()


class Schedule:
    """Lets one of several threads go on at a time, from one request to S3 to the next."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._turn = threading.Condition()
        self._waiting: set[str] = set()
        self._running = 0
        self._chosen: str | None = None

    def run(self, *jobs: Callable[[], None]) -> None:
        self._running = len(jobs)
        threads = [
            threading.Thread(target=self._do, args=(job,), name=f"{NAME}{index}")
            for index, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def step(self) -> None:
        me = threading.current_thread().name
        with self._turn:
            self._waiting.add(me)
            self._choose()
            self._turn.wait_for(lambda: self._chosen == me)
            self._chosen = None
            self._waiting.discard(me)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._turn:
                self._running -= 1
                self._choose()

    def _choose(self) -> None:
        """When all have come to a request, one may make it."""
        if self._chosen is None and self._waiting and len(self._waiting) == self._running:
            self._chosen = self._random.choice(sorted(self._waiting))
            self._turn.notify_all()


class FakeBucket:
    """Strongly consistent, as S3 is; each request happens at one moment."""

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self._schedule = schedule

    def _request(self) -> None:
        if self._schedule is not None and threading.current_thread().name.startswith(NAME):
            self._schedule.step()

    def _etag(self, key: str) -> str:
        return hashlib.md5(self.objects[key]).hexdigest()

    def hash(self, key: str) -> Download:
        self._request()
        if key not in self.objects:
            raise JobError(ErrorCode.OBJECT_NOT_FOUND, "gone")
        return Download(SHA256, len(self.objects[key]), self._etag(key))

    def stat(self, key: str) -> tuple[int, str] | None:
        self._request()
        return (len(self.objects[key]), self._etag(key)) if key in self.objects else None

    def get(self, key: str) -> tuple[bytes, str] | None:
        self._request()
        return (self.objects[key], self._etag(key)) if key in self.objects else None

    def put_if(self, key: str, body: bytes, _type: str, etag: str | None) -> str | None:
        self._request()
        if etag != (self._etag(key) if key in self.objects else None):
            return None
        self.objects[key] = body
        return self._etag(key)

    def delete(self, key: str) -> None:
        self._request()
        self.objects.pop(key, None)

    def delete_if(self, key: str, etag: str) -> bool:
        self._request()
        if key in self.objects and self._etag(key) != etag:
            return False
        self.objects.pop(key, None)
        return True


def work_on(bucket: FakeBucket) -> Work:
    return cast(
        Work,
        SimpleNamespace(
            bucket=bucket,
            copies=Copies(cast(Any, bucket), mark_s=100.0),
            settings=SimpleNamespace(duplicate_guard="last-copy"),
            stage=lambda _name: nullcontext(),
            bytes_in=0,
        ),
    )


def hashed(bucket: FakeBucket, *keys: str) -> None:
    for key in keys:
        bucket.objects[key] = DATA
        hashing.run(HashJob(job_id=key, stemId="s", filepath=key), work_on(bucket))


def results_of(
    seed: int, jobs: list[tuple[str, str]], keys: list[str]
) -> tuple[FakeBucket, list[str]]:
    """Run jobs (what, key) interleaved by the seed; what is left, and how they ended."""
    bucket = FakeBucket(schedule := Schedule(seed))
    hashed(bucket, *keys)
    results = [""] * len(jobs)

    def do(index: int) -> None:
        kind, key = jobs[index]
        work = work_on(bucket)
        try:
            if kind == "hash":
                hashing.run(HashJob(job_id=index, stemId="s", filepath=key), work)
            else:
                job = DuplicateJob(job_id=index, stemId="s", filepath=key, audio_hash=SHA256)
                duplicate.run(job, work)
            results[index] = "SUCCESS"
        except JobError as error:
            results[index] = str(error.code)

    schedule.run(*(lambda index=index: do(index) for index in range(len(jobs))))
    return bucket, results


@pytest.mark.parametrize(
    "jobs",
    [
        [("delete", "a"), ("delete", "b")],
        [("delete", "a"), ("delete", "b"), ("delete", "a")],
        [("delete", "a"), ("hash", "a"), ("delete", "b")],
        [("delete", "a"), ("delete", "b"), ("delete", "c"), ("hash", "b")],
    ],
)
def test_one_copy_always_stays(jobs: list[tuple[str, str]]) -> None:
    keys = sorted({key for _, key in jobs})
    left, ends = set(), set()
    for seed in range(150):
        bucket, results = results_of(seed, jobs, keys)
        copies = [key for key in keys if key in bucket.objects]
        assert copies, (seed, results)
        left.add(len(copies))
        ends.update(results)
    # The interleavings did reach both: somebody deleted, and somebody was kept from it.
    assert min(left) < len(keys)
    assert {"SUCCESS", "last_known_copy"} <= ends
    # Of a copy that is marked or gone.
    assert ends <= {"SUCCESS", "last_known_copy", "storage_unavailable", "object_not_found"}


def test_a_job_that_died_anywhere_is_done_again() -> None:
    """After each of its requests; the second attempt ends it, and the other copy stays."""
    for requests in range(12):
        bucket = FakeBucket()
        hashed(bucket, "a", "b")
        job = DuplicateJob(job_id="d", stemId="s", filepath="a", audio_hash=SHA256)
        count = 0

        def die(limit: int = requests) -> None:
            nonlocal count
            count += 1
            if count > limit:
                raise KeyboardInterrupt

        bucket._request = die  # type: ignore[method-assign]
        died = False
        try:
            duplicate.run(job, work_on(bucket))
        except KeyboardInterrupt:
            died = True
        bucket._request = lambda: None  # type: ignore[method-assign]
        duplicate.run(job, work_on(bucket))
        assert "a" not in bucket.objects
        assert bucket.objects["b"] == DATA
        assert list(json.loads(bucket.objects[f"{PREFIX}{SHA256}.json"])) == ["b"]
    assert not died, "the last round has no death: all requests were tried"


def test_files_with_the_same_bytes_hashed_at_once_are_all_known() -> None:
    """Each is noted, and each knows those that were noted before it."""
    keys = ["a", "b", "c", "d"]
    for seed in range(50):
        bucket = FakeBucket(schedule := Schedule(seed))
        told: dict[str, list[str]] = {}

        def do(key: str, bucket: FakeBucket = bucket, told: dict[str, list[str]] = told) -> None:
            bucket.objects[key] = DATA
            job = HashJob(job_id=key, stemId="s", filepath=key)
            told[key] = hashing.run(job, work_on(bucket))["known_copies"]

        schedule.run(*(lambda key=key: do(key) for key in keys))
        noted = list(json.loads(bucket.objects[f"{PREFIX}{SHA256}.json"]))
        assert sorted(noted) == keys
        assert told == {key: noted[:index] for index, key in enumerate(noted)}


def test_a_sound_that_everybody_uploads_makes_no_endless_entry() -> None:
    """The first are known, and any other can be deleted; what is gone makes room."""
    bucket = FakeBucket()
    hashed(bucket, *(f"{number}.wav" for number in range(MOST_ENTRIES + 2)))
    index = f"{PREFIX}{SHA256}.json"
    assert len(json.loads(bucket.objects[index])) == MOST_ENTRIES
    last = f"{MOST_ENTRIES + 1}.wav"
    job = DuplicateJob(job_id="d", stemId="s", filepath=last, audio_hash=SHA256)
    duplicate.run(job, work_on(bucket))
    assert last not in bucket.objects
    del bucket.objects["0.wav"]
    hashed(bucket, "new.wav")
    assert len(entries := json.loads(bucket.objects[index])) == MOST_ENTRIES
    assert "new.wav" in entries
    assert "0.wav" not in entries
