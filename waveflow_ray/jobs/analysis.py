"""analysis: the waveform of a stem, for the browser to draw.

Takes   `AnalysisJob`: a stem and the key of its file.
Writes  ``waveforms/{stemId}_waveform_{suffix}.json``. The suffix is derived from the job, so
        doing the job twice writes the same key.
Reports /completion with the hash, the key, size, duration, sample rate and number of peaks.
        A file that breaks off gives the waveform of what is there, ``"truncated": true``.
Fails   object_not_found, file_too_large, unsupported_media_type, undecodable_audio, timeout,
        storage_unavailable.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any
from urllib.parse import quote

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.media import SNIFF_BYTES, canonical_type, sniff
from waveflow_ray.audio.peaks import waveform_of
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs.limits import limits_of
from waveflow_ray.jobs.work import Work
from waveflow_ray.messages import AnalysisJob
from waveflow_ray.outcomes import waveform_document
from waveflow_ray.settings import Settings

logger = logging.getLogger(__name__)


def run(job: AnalysisJob, work: Work) -> dict[str, Any]:
    """Returns the ``result`` object of /completion."""
    settings = work.settings
    with work.scratch() as fd:
        with work.stage("download"):
            download = work.bucket.download(job.filepath, fd, settings.max_file_size_bytes)
        work.bytes_in = download.size
        if job.audio_hash is not None and job.audio_hash.lower() != download.sha256:
            logger.warning(
                "analysed bytes do not have the hash that the message names",
                extra={"fields": {"job_id": job.job_id, "found": download.sha256}},
            )
        with work.stage("work"):
            check_media_type(os.pread(fd, SNIFF_BYTES, 0), job.filepath, settings)
            with open_audio(fd, limits_of(settings)) as reader:
                waveform = waveform_of(reader, job.num_peaks or settings.default_waveform_peaks)
    work.audio_s = waveform.duration
    key = f"waveforms/{safe_id(job.stemId)}_waveform_{job.fingerprint[:16]}.json"
    put_json(work, key, waveform_document(waveform, truncated=waveform.truncated))
    return {
        "audio_data_hash": download.sha256,
        "waveform_data_path": key,
        "file_size": download.size,
        "duration": waveform.duration,
        "sample_rate": waveform.sample_rate,
        "num_peaks": waveform.num_peaks,
    }


def check_media_type(head: bytes, key: str, settings: Settings) -> str:
    """The content type, by content; raises ``unsupported_media_type`` if it is not allowed."""
    found = sniff(head)
    if found not in {canonical_type(name) for name in settings.allowed_mime_types}:
        raise JobError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"This is not an audio file that can be used here; it looks like {found}. "
            "WAV, FLAC, OGG Vorbis, MP3 and AIFF are supported.",
            key,
        )
    return found


def put_json(work: Work, key: str, document: dict[str, Any]) -> None:
    """Write a JSON object to the bucket, as the upload stage."""
    body = json.dumps(document, separators=(",", ":")).encode()
    with work.stage("upload"):
        work.bucket.put(key, body, "application/json")
    work.bytes_out += len(body)


def safe_id(value: str | int) -> str:
    """An id as part of a key: never a path of its own, and no two ids alike."""
    return quote(str(value), safe="")
