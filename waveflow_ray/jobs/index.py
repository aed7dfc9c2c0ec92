"""index: hashes what is in the bucket, so that duplicate jobs know of copies older than this.

Writes  the entries of the index of known copies that hash jobs write otherwise, and how far it
        came, ``_waveflow/index.json``, so that it goes on there when it is started again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from waveflow_ray.aws.copies import Copies
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.errors import ErrorCode, JobError

OWN_PREFIXES = ("_waveflow/", "waveforms/", "mixed/")
CURSOR = "_waveflow/index.json"
SAVE_EVERY = 200


@dataclass
class Indexed:
    """How far it came.

    Attributes:
        objects, bytes: that were hashed.
        failed: keys that could not be read, with the reason.
        last: the key up to which all are done.
    """

    objects: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    last: str = ""


def index_bucket(
    bucket: Bucket,
    copies: Copies,
    *,
    prefix: str = "",
    after: str | None = None,
    threads: int = 16,
    tell: Callable[[Indexed], object] = lambda _so_far: None,
) -> Indexed:
    """Hash every object below `prefix`, in the order of the keys.

    Args:
        after: begin behind this key; None goes on where the last call with this prefix stopped.
        threads: objects read at a time.
        tell: is told how far it came, after every object.

    Raises:
        JobError: ``storage_unavailable``, if the bucket cannot be listed or written.
    """
    if after is None:
        after = _cursor(bucket, prefix)
    so_far = Indexed(last=after)
    waiting: deque[tuple[str, Future[int]]] = deque()

    def settle() -> None:
        key, done = waiting.popleft()
        try:
            so_far.bytes += done.result()
            so_far.objects += 1
        except JobError as error:
            if error.code is not ErrorCode.OBJECT_NOT_FOUND:  # deleted meanwhile
                so_far.failed[key] = str(error)
        so_far.last = key
        tell(so_far)
        if so_far.objects % SAVE_EVERY == 0:
            _save(bucket, prefix, so_far.last)

    def add(key: str) -> int:
        found = bucket.hash(key)
        copies.record(key, found, by=None)
        return found.size

    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        for key in _originals(bucket, prefix, after):
            waiting.append((key, pool.submit(add, key)))
            if len(waiting) >= 2 * threads:
                settle()
        while waiting:
            settle()
    _save(bucket, prefix, so_far.last)
    return so_far


def _originals(bucket: Bucket, prefix: str, after: str) -> Iterator[str]:
    for key, _size in bucket.keys(prefix, after):
        if not key.startswith(OWN_PREFIXES) and not key.endswith("/"):
            yield key


def _cursor(bucket: Bucket, prefix: str) -> str:
    kept = bucket.get(CURSOR)
    return str(json.loads(kept[0]).get(prefix, "")) if kept else ""


def _save(bucket: Bucket, prefix: str, after: str) -> None:
    kept = bucket.get(CURSOR)
    cursors = json.loads(kept[0]) if kept else {}
    body = json.dumps(cursors | {prefix: after}).encode()
    bucket.put(CURSOR, body, "application/json")
