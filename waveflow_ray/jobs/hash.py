"""hash: the SHA-256 of an uploaded file.

Takes   `HashJob`: a stem and the key of its file.
Writes  an entry in the index of known copies; the object streams by, memory is one chunk
        whatever its size.
Reports /hash-check. Any readable object has a hash, an empty one and a text file too.
Fails   object_not_found, storage_unavailable.
"""

from __future__ import annotations

from typing import Any

from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import HashJob


def run(job: HashJob, work: Work) -> dict[str, Any]:
    """Returns ``{"audio_hash": lower-case hex, "known_copies": keys}``."""
    with work.stage("download"):
        download = work.bucket.hash(job.filepath)
    work.bytes_in = download.size
    with work.stage("upload"):
        known = work.copies.record(job.filepath, download, job.fingerprint)
    return {"audio_hash": download.sha256, "known_copies": known}
