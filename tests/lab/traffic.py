"""A client that queues jobs of every kind, and the ledger of what came of them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.lab.account import SLOW
from tests.lab.cluster import Account
from tests.support import Received, Receiver, encoded, music
from waveflow_ray.aws.copies import Copies
from waveflow_ray.jobs.index import index_bucket
from waveflow_ray.messages import AnalysisJob, DuplicateJob, HashJob, Job, MixJob, envelope, parse

SMALL = 20
"""Objects that are hashed, again and again."""


@dataclass
class Expected:
    """How a job has to end: the webhook's path, and some of its fields or of its result."""

    path: str
    fields: dict[str, Any]

    def unlike(self, got: Received) -> str:
        """What is different; empty if nothing is."""
        found = got.payload | (got.payload.get("result") or {}) | {"path": got.path}
        wanted = {"path": self.path, **self.fields}
        wrong = {name: found.get(name) for name in wanted if found.get(name) != wanted[name]}
        return f"{wrong} instead of {wanted}" if wrong else ""


@dataclass
class Sizes:
    """How many jobs of each kind; `mix_s` is the length of a mix in seconds.

    Stems that are `slow` to read make mixes that take time and little CPU.
    """

    hashes: int = 100
    analyses: int = 60
    duplicates: int = 10
    mixes: int = 20
    bad: int = 10
    mix_s: float = 5.0
    slow: bool = False


@dataclass
class Batch:
    """Jobs, and how each has to end."""

    bodies: list[str] = field(default_factory=list)
    expected: dict[str, Expected] = field(default_factory=dict)
    """By event: the `webhook-id` without the status."""
    gone: list[str] = field(default_factory=list)
    """Keys that are deleted by the jobs."""

    def add(self, body: str, path: str, **fields: Any) -> None:
        """A job's message, and its webhook."""
        self.bodies.append(body)
        self.expected[event_of(body)] = Expected(path, fields)

    def take(self, count: int) -> Batch:
        """So many of its jobs, which are no longer in it."""
        bodies, self.bodies = self.bodies[:count], self.bodies[count:]
        return Batch(bodies, {event: self.expected.pop(event) for event in map(event_of, bodies)})


def event_of(body: str) -> str:
    """The `webhook-id` of a job without the status, by its message."""
    return f"msg_{parse(body, 'm').fingerprint[:32]}"


@functools.cache
def sound(kind: str, seconds: float, seed: int) -> bytes:
    """A file of music; the same each time."""
    return encoded(music(seconds, seed=seed), format=kind)


def make_batch(account: Account, name: str, sizes: Sizes, seed: int = 1) -> Batch:
    """Put the audio into the bucket and write the messages; all is of the name given."""
    bucket, batch = account.bucket, Batch()
    sounds = {
        "a.wav": sound("WAV", 3.0, 0),
        "b.flac": sound("FLAC", 4.0, 1),
        "c.mp3": sound("MP3", 5.0, 2),
    }
    for file, content in sounds.items():
        bucket.put(f"{name}/{file}", content, "audio/wav")
    speed = SLOW if sizes.slow else "long-"
    stems = {f"{name}/{speed}{n}.flac": sound("FLAC", sizes.mix_s, n) for n in range(3)}
    for key, content in stems.items():
        bucket.put(key, content, "audio/flac")
    bucket.put(f"{name}/no.wav", b"no sound at all " * 50, "audio/wav")
    small = [random.Random(f"{name}-{n}").randbytes(5000) for n in range(SMALL)]
    for number, content in enumerate(small):
        bucket.put(f"{name}/small/{number}", content, "x")
    for number in range(sizes.duplicates):
        for copy in "ab":
            bucket.put(f"{name}/pair/{number}/{copy}", small[0] + bytes([number]), "x")
    index_bucket(bucket, Copies(bucket, 100.0), prefix=f"{name}/pair/")

    def body(kind: type[Job], number: int, **fields: Any) -> str:
        return envelope(kind, f"{name}-{kind.kind}-{number}", **fields)

    for n in range(sizes.hashes):
        key = f"{name}/small/{n % SMALL}"
        digest = hashlib.sha256(small[n % SMALL]).hexdigest()
        text = body(HashJob, n, stemId=f"{name}-{n}", filepath=key, stageId="s", userId=str(n))
        batch.add(text, "/hash-check", status="hash_generated", audio_hash=digest, userId=str(n))
    names = itertools.cycle(sounds)
    for n in range(sizes.analyses):  # of the stems that are hashed: one webhook at a time
        file = next(names)
        digest = hashlib.sha256(sounds[file]).hexdigest()
        text = body(AnalysisJob, n, stemId=f"{name}-{n}", filepath=f"{name}/{file}")
        batch.add(text, "/completion", status="SUCCESS", audio_data_hash=digest, num_peaks=4000)
    for n in range(sizes.duplicates):
        key = f"{name}/pair/{n}/b"
        text = body(DuplicateJob, n, stemId=f"{name}-copy-{n}", filepath=key)
        batch.add(text, "/completion", status="SUCCESS", result=None)
        batch.gone.append(key)
    for n in range(sizes.mixes):
        text = body(MixJob, n, stageId=f"{name}-{n // 2}", stem_paths=list(stems))
        batch.add(text, "/mixing-complete", status="SUCCESS", stem_count=len(stems))
    for n in range(sizes.bad):
        missing = n % 2
        key = f"{name}/{'missing' if missing else 'no'}.wav"
        code = "object_not_found" if missing else "unsupported_media_type"
        text = body(AnalysisJob, 1000 + n, stemId=f"{name}-bad-{n}", filepath=key)
        batch.add(text, "/completion", status="FAILURE", error_code=code)
    random.Random(seed).shuffle(batch.bodies)
    return batch


@dataclass
class Ledger:
    """Compares the webhooks that came with the jobs of some batches."""

    main_server: Receiver
    account: Account
    batches: list[Batch] = field(default_factory=list)

    def expected(self) -> dict[str, Expected]:
        """Of all batches."""
        return {event: e for batch in self.batches for event, e in batch.expected.items()}

    def unfinished(self) -> set[str]:
        """Events of which no webhook has come."""
        return self.expected().keys() - self._came().keys()

    def wrongs(self, *, repeats: bool = False) -> list[str]:
        """What is not as it has to be.

        Args:
            repeats: a webhook may come again, the same to the byte, as after a crash.
        """
        found = [f"lost: {event}" for event in self.unfinished()]
        expected = self.expected()
        for event, came in self._came().items():
            if event not in expected:
                found.append(f"unknown: {came[0].payload}")
                continue
            if len({got.headers["webhook-id"] for got in came}) > 1:
                found.append(f"ended in two ways: {[got.payload for got in came]}")
            if len({got.body for got in came}) > 1:
                found.append(f"repeated with another body: {[got.body for got in came]}")
            if len(came) > 1 and not repeats:
                found.append(f"came {len(came)} times: {came[0].payload}")
            if difference := expected[event].unlike(came[0]):
                found.append(f"wrong: {difference}")
        found += [f"two in flight for {one.subject}" for one, _other in self.main_server.overlaps()]
        for batch in self.batches:
            found += [
                f"still there: {key}" for key in batch.gone if self.account.bucket.exists(key)
            ]
        return found

    def explain(self) -> str:
        """For a wait that took too long."""
        rest = self.unfinished()
        bodies = [b for batch in self.batches for b in batch.bodies if event_of(b) in rest]
        return f"{len(rest)} did not end, e.g. {bodies[:3]}; queue {self.account.left()}"

    def _came(self) -> dict[str, list[Received]]:
        came = defaultdict(list)
        for got in self.main_server.accepted:
            came[got.headers["webhook-id"].rpartition("_")[0]].append(got)
        return came
