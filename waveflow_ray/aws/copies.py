"""The index of known copies: which objects hold the same bytes.

One small JSON object for every SHA-256, ``_waveflow/hashes/{sha256}.json``, which names the keys
that had these bytes when they were hashed. It is what stands between a redelivered message and
the only copy of somebody's recording.

**Why the last copy stays.** Who wants to delete a copy first marks it as leaving, in the same
write that found another copy not marked. All writes of an index object are conditional on its
ETag, and S3 is strongly consistent, so they have an order, and each was made knowing the one
before. Nobody who deletes takes a mark away. So of those who delete copies of the same bytes,
each has left one that was not marked, and of one copy only one job at a time is sure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from waveflow_ray.aws.s3 import Bucket, Download
from waveflow_ray.errors import ErrorCode, JobError

PREFIX = "_waveflow/hashes/"
MOST_COPIES = 20
"""Of those told in a webhook."""
MOST_ENTRIES = 500
"""Of one hash: what is behind that, silence say, is not noted, so nobody counts on it."""
TRIES = 100
"""Of writes that meet another's: one of those who write at the same time always succeeds."""
TYPE = "application/json"
INDEX = "index"
"""In place of a job, where none asked."""


@dataclass(frozen=True)
class Copy:
    """What the index says of one key.

    Attributes:
        size: in bytes.
        etag: of the object when it was hashed.
        by: fingerprint of the job that wrote this, or `INDEX`.
        known_copies: other keys with the same bytes that were there at that time.
        leaving: fingerprint of the job that is about to delete the object, if any.
        leaving_since: when that began, seconds since 1970.
    """

    size: int
    etag: str
    by: str
    known_copies: tuple[str, ...] = ()
    leaving: str | None = None
    leaving_since: float = 0.0


Entries = dict[str, Copy]
"""By key."""


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

    def record(self, key: str, found: Download, by: str | None) -> list[str]:
        """Note that a key has these bytes. Returns other keys that have them too, at most 20.

        The same job gets the same answer when it is done again.

        Args:
            by: fingerprint of the job. None if no job asks: then what a job noted stays, and no
                other key is looked for.

        Raises:
            JobError: ``storage_unavailable``.
        """
        entries: Entries = {}
        etag: str | None = None  # most files are the first of their kind: written unread
        for _ in range(TRIES):
            before = entries.get(key)
            if before and before.etag == found.etag and by in (before.by, None):
                return list(before.known_copies)
            known, gone = self._looked_up(key, entries) if by else ([], set())
            if before is None or not self._is_marked(before):
                rest = {other: copy for other, copy in entries.items() if other not in gone}
                if key in rest or len(rest) < MOST_ENTRIES:
                    rest[key] = Copy(found.size, found.etag, by or INDEX, tuple(known))
                if not self._write(found.sha256, rest, etag):
                    entries, etag = self._read(found.sha256)
                    continue
            return known
        raise _crowded(key, found)

    def leave(self, key: str, found: Download, by: str) -> bool:
        """Mark a copy as leaving, if another one stays. Only then may it be deleted.

        Returns:
            False if no other copy is known to be there; then it has no mark.

        Raises:
            JobError: ``storage_unavailable``, if another job has just marked this copy.
        """
        for _ in range(TRIES):
            entries, etag = self._read(found.sha256)
            copy = entries.get(key) or Copy(found.size, found.etag, by)
            if self._is_marked(copy) and copy.leaving != by:
                raise JobError(
                    ErrorCode.STORAGE_UNAVAILABLE,
                    "The file is being deleted by another job.",
                    f"{key} in the index of {found.sha256}",
                )
            stays = any(
                other != key and there.leaving is None and self._is_there(other, there)
                for other, there in entries.items()
            )
            if stays:
                copy = replace(copy, leaving=by, leaving_since=self._clock())
            elif copy.leaving is None:
                return False
            else:  # of an attempt before this one, that saw another copy
                copy = replace(copy, leaving=None, leaving_since=0.0)
            if self._write(found.sha256, {**entries, key: copy}, etag):
                return stays
        raise _crowded(key, found)

    def forget(self, key: str, sha256_hex: str) -> None:
        """Take out a key whose object is gone, or is another now."""
        for _ in range(TRIES):
            entries, etag = self._read(sha256_hex)
            if key not in entries or etag is None:
                return
            del entries[key]
            if entries:
                done = self._write(sha256_hex, entries, etag)
            else:
                done = self._bucket.delete_if(_name(sha256_hex), etag)
            if done:
                return

    def _looked_up(self, key: str, entries: Mapping[str, Copy]) -> tuple[list[str], set[str]]:
        """Other keys that are there, at most 20; and those seen that are not, or are others."""
        known: list[str] = []
        gone: set[str] = set()
        for other, copy in entries.items():
            if len(known) == MOST_COPIES:
                break
            if other == key:
                continue
            if self._is_there(other, copy):
                known.append(other)
            else:
                gone.add(other)
        return known, gone

    def _is_there(self, key: str, copy: Copy) -> bool:
        return self._bucket.stat(key) == (copy.size, copy.etag)

    def _is_marked(self, copy: Copy) -> bool:
        return copy.leaving is not None and self._clock() - copy.leaving_since < self._mark_s

    def _read(self, sha256_hex: str) -> tuple[Entries, str | None]:
        """What the index has for a hash, and its ETag; None if it has nothing."""
        content = self._bucket.get(_name(sha256_hex))
        if content is None:
            return {}, None
        entries = {
            key: Copy(**{**fields, "known_copies": tuple(fields["known_copies"])})
            for key, fields in json.loads(content[0]).items()
        }
        return entries, content[1]

    def _write(self, sha256_hex: str, entries: Entries, etag: str | None) -> bool:
        """False if it was changed since it was read."""
        fields = {key: vars(copy) for key, copy in entries.items()}
        body = json.dumps(fields, separators=(",", ":")).encode()
        return self._bucket.put_if(_name(sha256_hex), body, TYPE, etag) is not None


def _name(sha256_hex: str) -> str:
    return f"{PREFIX}{sha256_hex}.json"


def _crowded(key: str, found: Download) -> JobError:
    return JobError(
        ErrorCode.STORAGE_UNAVAILABLE,
        "The index of known copies was changed again and again; please try again later.",
        f"{key} in the index of {found.sha256}",
    )
