"""duplicate: delete a file that is a copy of another.

Takes   `DuplicateJob`: the key of the copy and, normally, the hash that it must have.
Writes  nothing but marks in the index of known copies; deletes the object. One that is gone
        already counts as deleted, so doing the job twice is harmless.
Reports /completion with a null result.
Fails   hash_mismatch (the bytes are not what the message says), last_known_copy,
        protected_object (a result of this service), storage_unavailable.

DUPLICATE_GUARD says what is checked before: that another copy stays (``last-copy``), the hash
alone (``hash``), or nothing (``off``).
"""

from __future__ import annotations

from typing import Any

from waveflow_ray.aws.s3 import Download
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import DuplicateJob

PROTECTED_PREFIXES = ("waveforms/", "mixed/", "_waveflow/")


def run(job: DuplicateJob, work: Work) -> dict[str, Any]:
    """Returns an empty result: there is nothing to tell but that it is done."""
    key, guard = job.filepath, work.settings.duplicate_guard
    if key.startswith(PROTECTED_PREFIXES):
        raise JobError(
            ErrorCode.PROTECTED_OBJECT,
            "The file was kept: it is a waveform or a mix, not an upload.",
            key,
        )
    if guard == "off" or (guard == "hash" and job.audio_hash is None):
        with work.stage("work"):
            work.bucket.delete(key)
        return {}
    try:
        found = _checked(job, work)
    except JobError as error:
        if error.code is not ErrorCode.OBJECT_NOT_FOUND:
            raise
        if job.audio_hash is not None:
            work.copies.forget(key, job.audio_hash.lower())
        return {}
    with work.stage("work"):
        if guard == "last-copy" and not work.copies.leave(key, found, job.fingerprint):
            raise JobError(
                ErrorCode.LAST_KNOWN_COPY,
                "The file was kept: no other copy of it is known.",
                f"{key} has {found.sha256}",
            )
        deleted = work.bucket.delete_if(key, found.etag)
        work.copies.forget(key, found.sha256)
    if not deleted:
        raise JobError(
            ErrorCode.HASH_MISMATCH,
            "The file was kept: it was replaced while it was looked at.",
            f"{key} had {found.sha256}",
        )
    return {}


def _checked(job: DuplicateJob, work: Work) -> Download:
    with work.stage("download"):
        found = work.bucket.hash(job.filepath)
    work.bytes_in = found.size
    if job.audio_hash is not None and found.sha256 != job.audio_hash.lower():
        raise JobError(
            ErrorCode.HASH_MISMATCH,
            "The file was kept: it is not the copy that it was taken for.",
            f"{job.filepath} has {found.sha256}, the message says {job.audio_hash}",
        )
    return found
