"""The index of known copies: which objects hold the same bytes.

One small JSON object for every key that was hashed, ``_waveflow/hashes/{sha256}/{name}``. It is
what stands between a redelivered message and the only copy of somebody's recording.

**Why the last copy stays.** Who wants to delete a copy first marks it as leaving, then looks for
one that is not marked and still there, and deletes only if there is one. S3 is strongly
consistent. Of several who delete copies of the same bytes at the same time, consider the one
that marked last: when it looked, all others had marked, and nobody who deletes takes a mark
away. So it saw no other copy, and kept its own. Marks are set and replaced under the condition
that nobody else has changed them, so of one copy only one job at a time is sure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from urllib.parse import quote, unquote

from waveflow_ray.aws.s3 import Bucket, Download
from waveflow_ray.errors import ErrorCode, JobError

PREFIX = "_waveflow/hashes/"
LONGEST_NAME = 900
"""Of a key as part of another: S3 takes keys of 1024 bytes."""
MOST_COPIES = 20
"""Of those told in a webhook."""
TYPE = "application/json"


@dataclass(frozen=True)
class Copy:
    """What the index says of one key.

    Attributes:
        key: of the object with the bytes.
        size: in bytes.
        etag: of the object when it was hashed.
        by: fingerprint of the job that wrote this.
        known_copies: other keys with the same bytes that were there at that time.
        leaving: fingerprint of the job that is about to delete the object, if any.
        leaving_since: when that began, seconds since 1970.
    """

    key: str
    size: int
    etag: str
    by: str
    known_copies: tuple[str, ...] = ()
    leaving: str | None = None
    leaving_since: float = 0.0


class Copies:
    """The index in a bucket.

    Args:
        mark_s: how long a mark counts: longer than a job can run.
    """

    def __init__(
        self, bucket: Bucket, mark_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._bucket = bucket
        self._mark_s = mark_s
        self._clock = clock

    def record(self, key: str, found: Download, by: str) -> list[str]:
        """Note that a key has these bytes. Returns other keys that have them too, at most 20.

        The same job gets the same answer when it is done again.
        """
        others = self._others(key, found)
        known = tuple(islice((copy for copy in others if self._is_there(copy, found)), MOST_COPIES))
        return list(self.note(key, found, by, known).known_copies)

    def note(self, key: str, found: Download, by: str, known: tuple[str, ...] = ()) -> Copy:
        """Write the entry of a key; returns it, or the one that this job wrote before."""
        copy = Copy(key, found.size, found.etag, by, known)
        if self._write(found.sha256, copy, None) is None:
            there = self._read(found.sha256, key)
            if there is not None:
                before, etag = there
                if before.by == by and before.etag == found.etag:
                    return before
                if not self._is_marked(before):
                    self._write(found.sha256, copy, etag)
        return copy

    def leave(self, key: str, found: Download, by: str) -> bool:
        """Mark a copy as leaving, if another one stays. Only then may it be deleted.

        Returns:
            False if no other copy is known to be there; then the mark is gone again.

        Raises:
            JobError: ``storage_unavailable``, if another job has just marked this copy.
        """
        marked = Copy(key, found.size, found.etag, by, (), by, self._clock())
        mark = self._write(found.sha256, marked, None)
        if mark is None:
            there = self._read(found.sha256, key)
            if there is not None and not (self._is_marked(there[0]) and there[0].leaving != by):
                marked = replace(marked, by=there[0].by, known_copies=there[0].known_copies)
                mark = self._write(found.sha256, marked, there[1])
        if mark is None:
            raise JobError(
                ErrorCode.STORAGE_UNAVAILABLE,
                "The file is being deleted by another job.",
                f"{key} in the index of {found.sha256}",
            )
        for other in self._others(key, found):
            there = self._read(found.sha256, other)
            if (
                there is not None
                and there[0].leaving is None
                and self._bucket.stat(other) == (found.size, there[0].etag)
            ):
                return True
        self._write(found.sha256, replace(marked, leaving=None, leaving_since=0.0), mark)
        return False

    def forget(self, key: str, sha256_hex: str) -> None:
        """Take out a key whose object is gone, or is another now."""
        self._bucket.delete(_name(sha256_hex, key))

    def _is_marked(self, copy: Copy) -> bool:
        return copy.leaving is not None and self._clock() - copy.leaving_since < self._mark_s

    def _others(self, key: str, found: Download) -> Iterator[str]:
        """Keys with these bytes by the index; whether they are there still is another matter."""
        prefix = f"{PREFIX}{found.sha256}/"
        own = _name(found.sha256, key)
        for name, _ in self._bucket.keys(prefix):
            if name == own:
                continue
            part = name.removeprefix(prefix)
            if not part.startswith("!"):
                yield unquote(part)
            elif (content := self._bucket.get(name)) is not None:
                yield _parsed(content[0]).key

    def _is_there(self, key: str, found: Download) -> bool:
        there = self._bucket.stat(key)
        return there is not None and there[0] == found.size

    def _read(self, sha256_hex: str, key: str) -> tuple[Copy, str] | None:
        content = self._bucket.get(_name(sha256_hex, key))
        return None if content is None else (_parsed(content[0]), content[1])

    def _write(self, sha256_hex: str, copy: Copy, etag: str | None) -> str | None:
        body = json.dumps(asdict(copy), separators=(",", ":")).encode()
        return self._bucket.put_if(_name(sha256_hex, copy.key), body, TYPE, etag)


def _parsed(content: bytes) -> Copy:
    fields = json.loads(content)
    return Copy(**{**fields, "known_copies": tuple(fields["known_copies"])})


def _name(sha256_hex: str, key: str) -> str:
    """The key of an entry. ``!`` never comes out of quoting, so no two keys share one."""
    part = quote(key, safe="")
    if len(part) > LONGEST_NAME:
        part = "!" + sha256(key.encode()).hexdigest()
    return f"{PREFIX}{sha256_hex}/{part}"
