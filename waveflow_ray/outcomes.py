"""What a job ends in, and the webhook that tells the main server.

Payloads follow docs/messages.md field for field. What was not given is ``null``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.messages import (
    AnalysisJob,
    DuplicateJob,
    HashJob,
    Job,
    MixJob,
    RejectedJob,
    stem_paths_of,
)

HASH_CHECK = "/hash-check"
COMPLETION = "/completion"
MIXING_COMPLETE = "/mixing-complete"

Status = Literal["SUCCESS", "FAILURE"]


@dataclass(frozen=True)
class Webhook:
    """One event for the main server. Sent again, it is the same to the byte.

    Attributes:
        id: the ``webhook-id`` header, the same for every attempt, also after a restart.
        path: appended to WEBHOOK_URL.
        body: the JSON payload.
        subject: no two webhooks of one subject are ever in flight together.
        status: what the payload says of the job.
    """

    id: str
    path: str
    body: bytes
    subject: str
    status: Status


@dataclass(frozen=True)
class Usage:
    """What a job cost. Seconds by stage, bytes moved, seconds of audio, peak memory in MB,
    seconds of CPU."""

    seconds: dict[str, float] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    audio_s: float = 0.0
    peak_memory_mb: float = 0.0
    node: str = ""
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The one end of a job: what is reported, what is logged, and what failed if it failed.

    Attributes:
        kept: the webhook will be the same if the job is done again.
    """

    status: Status
    webhook: Webhook | None
    error: JobError | None = None
    usage: Usage = field(default_factory=Usage)
    notes: dict[str, Any] = field(default_factory=dict)
    kept: bool = False


def utc_now() -> str:
    """The time as the wire has it: UTC, ISO 8601, microseconds, ``Z``."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Drawn(Protocol):
    """Sound with a waveform: an analysed stem or a mix."""

    @property
    def peaks(self) -> list[float]: ...
    @property
    def duration(self) -> float: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def frames(self) -> int: ...


def waveform_document(sound: Drawn, *, truncated: bool = False) -> dict[str, Any]:
    """The waveform JSON that the browser reads; docs/waveform.md describes it.

    Args:
        truncated: the file breaks off; the waveform is of what there is.
    """
    return {
        "peaks": sound.peaks,
        "duration": sound.duration,
        "sample_rate": sound.sample_rate,
        "num_peaks": len(sound.peaks),
        "created_at": utc_now(),
        "channels": sound.channels,
        "frames": sound.frames,
        "truncated": truncated,
    }


def success(job: Job, result: dict[str, Any], processing_s: float) -> Webhook | None:
    """The webhook of a job that went well; None where nobody is to be told.

    Args:
        result: what the job found. hash: ``audio_hash``, ``known_copies``. analysis: the
            ``result`` object as it goes out. mix: ``mixed_file_path``, ``waveform_data_path``,
            ``result``.
        processing_s: seconds that the job took.
    """
    if isinstance(job, HashJob):
        payload = {
            "stemId": job.stemId,
            "userId": job.userId,
            "trackId": job.trackId,
            "stageId": job.stageId,
            "filepath": job.filepath,
            "audio_hash": result["audio_hash"],
            "timestamp": job.timestamp,
            "original_filename": _filename(job.original_filename, job.filepath, job.stemId),
            "status": "hash_generated",
            "known_copies": result["known_copies"],
        }
        return _webhook(job, HASH_CHECK, payload, "SUCCESS")
    if isinstance(job, DuplicateJob):
        return _webhook(job, COMPLETION, _completion(job.model_dump(), "SUCCESS"), "SUCCESS")
    if isinstance(job, AnalysisJob):
        payload = _completion(job.model_dump(), "SUCCESS") | {
            "result": result,
            "processing_time": round(processing_s, 3),
            "audio_wave_path": result["waveform_data_path"],
        }
        return _webhook(job, COMPLETION, payload, "SUCCESS")
    if isinstance(job, MixJob):
        fields = job.model_dump()
        return _webhook(job, MIXING_COMPLETE, _mixing(job, fields, "SUCCESS") | result, "SUCCESS")
    return None


def failure(job: Job, error: JobError, processing_s: float) -> Webhook | None:
    """The webhook of a job that ended badly; None where it names no stem and no stage."""
    if isinstance(job, MixJob) or (isinstance(job, RejectedJob) and job.about_mix):
        fields = job.fields if isinstance(job, RejectedJob) else job.model_dump()
        payload = _mixing(job, fields, "FAILURE") | {"result": error.as_result()}
        return _webhook(job, MIXING_COMPLETE, payload, "FAILURE")
    fields = job.fields if isinstance(job, RejectedJob) else job.model_dump()
    payload = _completion(fields, "FAILURE") | {
        "result": error.as_result(),
        "processing_time": round(processing_s, 3),
    }
    return _webhook(job, COMPLETION, payload, "FAILURE")


def failed(job: Job, error: JobError, usage: Usage | None = None) -> Outcome:
    """The outcome of a job that ended with `error`."""
    usage = usage or Usage()
    processing_s = sum(usage.seconds.values())
    return Outcome("FAILURE", failure(job, error, processing_s), error, usage)


def lost_worker(job: Job, attempts: int) -> JobError:
    """The error of a job whose worker process died every time."""
    return JobError(
        ErrorCode.WORKER_CRASHED,
        "The file could not be processed: it stopped the program that reads it.",
        f"{attempts} worker processes died on job {job.job_id}",
    )


def _webhook(job: Job, path: str, payload: dict[str, Any], status: Status) -> Webhook | None:
    if job.subject is None:
        return None
    body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    # A job that failed may succeed when an operator replays it: that is another event.
    return Webhook(f"msg_{job.fingerprint[:32]}_{status.lower()}", path, body, job.subject, status)


def _completion(fields: dict[str, Any], status: Status) -> dict[str, Any]:
    return {
        "stemId": fields.get("stemId"),
        "userId": fields.get("userId"),
        "trackId": fields.get("trackId"),
        "upstreamId": fields.get("upstreamId"),
        "status": status,
        "result": None,
        "timestamp": utc_now(),
        "original_filename": _filename(
            fields.get("original_filename"), fields.get("filepath"), fields.get("stemId")
        ),
        "processing_time": None,
        "audio_wave_path": None,
    }


def _mixing(job: Job, fields: dict[str, Any], status: Status) -> dict[str, Any]:
    paths = stem_paths_of(fields)
    return {
        "stageId": fields.get("stageId"),
        "upstreamId": fields.get("upstreamId"),
        "status": status,
        "mixed_file_path": None,
        "waveform_data_path": None,
        "stem_count": len(paths),
        "stem_paths": paths,
        "task_id": job.job_id,
        "processed_at": utc_now(),
    }


def _filename(given: Any, filepath: Any, stem_id: Any) -> Any:
    """A null here costs the stem its record on the main server, so something stands in."""
    if given is not None:
        return given
    last = filepath.rstrip("/").rsplit("/", 1)[-1] if isinstance(filepath, str) else ""
    return last or str(stem_id)
