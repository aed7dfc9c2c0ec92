"""What jobs may ask for: limits that are settings, so they are not the parser's."""

from __future__ import annotations

import unicodedata

from waveflow_ray.audio.decode import Limits
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.messages import AnalysisJob, DuplicateJob, HashJob, Job, MixJob
from waveflow_ray.settings import Settings


def check_limits(job: Job, settings: Settings) -> None:
    """Raise ``invalid_message`` for what is more, or elsewhere, than the settings allow."""
    if isinstance(job, HashJob | DuplicateJob | AnalysisJob):
        check_key(job.filepath, settings)
    if isinstance(job, AnalysisJob) and (job.num_peaks or 0) > settings.max_num_peaks:
        raise _refused(
            f"{job.num_peaks} peaks are too many; at most {settings.max_num_peaks} are allowed."
        )
    if isinstance(job, MixJob):
        if len(job.stems) > settings.max_stems:
            raise _refused(
                f"{len(job.stems)} stems are too many; at most {settings.max_stems} are allowed."
            )
        for stem in job.stems:
            check_key(stem.path, settings)


def check_key(key: str, settings: Settings) -> None:
    """Raise ``invalid_message`` unless a key is one that an upload may have."""
    if any(unicodedata.category(letter) == "Cc" for letter in key):
        raise _refused("The file's name has control characters.", repr(key))
    if not all(part not in ("", ".", "..") for part in key.split("/")):
        raise _refused("The file's name has an empty part, or one of dots alone.", repr(key))
    allowed = settings.allowed_key_prefixes
    if allowed and not key.startswith(allowed):
        raise _refused("The file is not where uploads are.", f"{key!r}, not in {allowed}")


def limits_of(settings: Settings) -> Limits:
    """Of what is decoded."""
    return Limits(
        max_channels=settings.max_channels,
        min_rate_hz=settings.min_sample_rate,
        max_rate_hz=settings.max_sample_rate,
        max_duration_s=settings.max_duration_s,
    )


def _refused(message: str, detail: str = "") -> JobError:
    return JobError(ErrorCode.INVALID_MESSAGE, message, detail)
