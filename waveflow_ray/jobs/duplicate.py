"""duplicate: delete a file that is a copy of another.

Takes   `DuplicateJob`: the key of the copy and, normally, the hash that it must have.
Writes  nothing; deletes the object. One that is gone already counts as deleted, so doing
        the job twice is harmless.
Reports /completion with a null result.
Fails   hash_mismatch (the bytes are not what the message says), protected_object (a result
        of this service), storage_unavailable.
"""

from __future__ import annotations

from typing import Any

from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import DuplicateJob

PROTECTED_PREFIXES = ("waveforms/", "mixed/")


def run(job: DuplicateJob, work: Work) -> dict[str, Any]:
    """Returns an empty result: there is nothing to tell but that it is done."""
    if job.filepath.startswith(PROTECTED_PREFIXES):
        raise JobError(
            ErrorCode.PROTECTED_OBJECT,
            "The file was kept: it is a waveform or a mix, not an upload.",
            job.filepath,
        )
    if job.audio_hash is not None:
        try:
            _check_hash(job, job.audio_hash, work)
        except JobError as error:
            if error.code is ErrorCode.OBJECT_NOT_FOUND:
                return {}
            raise
    with work.stage("work"):
        work.bucket.delete(job.filepath)
    return {}


def _check_hash(job: DuplicateJob, expected: str, work: Work) -> None:
    with work.stage("download"):
        download = work.bucket.hash(job.filepath)
    work.bytes_in = download.size
    if download.sha256 != expected.lower():
        raise JobError(
            ErrorCode.HASH_MISMATCH,
            "The file was kept: it is not the copy that it was taken for.",
            f"{job.filepath} has {download.sha256}, the message says {expected}",
        )
