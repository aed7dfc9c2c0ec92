"""analysis: the waveform of a stem, for the browser to draw.

Takes   `AnalysisJob`: a stem and the key of its file.
Writes  ``waveforms/{stemId}_waveform_{suffix}.json``. The suffix is derived from the job, so
        doing the job twice writes the same key.
Reports /completion with the hash, the key, size, duration, sample rate and number of peaks.
        A file that breaks off gives the waveform of what is there, ``"truncated": true``.
        PCM is drawn while it comes; all else goes through a scratch file.
Fails   object_not_found, file_too_large, unsupported_media_type, undecodable_audio, timeout,
        storage_unavailable.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.media import canonical_type, sniff
from waveflow_ray.audio.pcmstream import PcmStream
from waveflow_ray.audio.peaks import waveform_of
from waveflow_ray.aws.s3 import writer_to
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
    limits = limits_of(settings)
    num_peaks = job.num_peaks or settings.default_waveform_peaks
    stream: PcmStream | None = None
    with work.scratch() as fd:

        def begin(head: bytes, size: int) -> Callable[[bytes], object]:
            nonlocal stream
            check_media_type(head, job.filepath, settings)
            stream = PcmStream.of(head, size, limits, num_peaks)
            return writer_to(fd) if stream is None else stream.add

        with work.stage("download"):
            download = work.bucket.stream(job.filepath, settings.max_file_size_bytes, begin)
        work.bytes_in = download.size
        if job.audio_hash is not None and job.audio_hash.lower() != download.sha256:
            logger.warning(
                "analysed bytes do not have the hash that the message names",
                extra={"fields": {"job_id": job.job_id, "found": download.sha256}},
            )
        with work.stage("work"):
            if stream is not None:
                waveform = stream.waveform()
            else:
                with open_audio(fd, limits) as reader:
                    waveform = waveform_of(reader, num_peaks)
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
