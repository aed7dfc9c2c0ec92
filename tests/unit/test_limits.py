"""What jobs may ask for, by the settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import analysis_job, hash_job, mix_job, settings_of
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.jobs.analysis import safe_id
from waveflow_ray.jobs.limits import check_limits, limits_of
from waveflow_ray.messages import DuplicateJob, Job

ROOT = Path(__file__).parents[2]


def refusal(job: Job, **settings: Any) -> str | None:
    """The sentence, or None where the job is fine."""
    try:
        check_limits(job, settings_of(**settings))
    except JobError as error:
        return error.message if error.code is ErrorCode.INVALID_MESSAGE else str(error)
    return None


@pytest.mark.parametrize(
    "key", ["a", "songs/a b/드럼 (1).wav", "...", "a..b/c.", "ü" * 512, "~/!*'()"]
)
def test_keys_that_uploads_have(key: str) -> None:
    assert refusal(hash_job(filepath=key)) is None


@pytest.mark.parametrize(
    "key", ["/a", "a/", "a//b", "a/../b", "..", "./a", "a\nb", "a\0b", "a/\x7fb", "\x85"]
)
def test_keys_that_are_refused(key: str) -> None:
    """In every kind of job that names one."""
    jobs = [
        hash_job(filepath=key),
        analysis_job(filepath=key),
        DuplicateJob(job_id="d", stemId="s", filepath=key),
        mix_job(stem_paths=["fine.wav", key]),
    ]
    for job in jobs:
        assert "name has" in (refusal(job) or "")


def test_uploads_may_have_their_place() -> None:
    prefixes = ("songs/", "stems/")
    assert refusal(hash_job(filepath="songs/a"), allowed_key_prefixes=prefixes) is None
    for key in ("song/a", "_waveflow/hashes/x", "secrets/songs/a"):
        said = refusal(hash_job(filepath=key), allowed_key_prefixes=prefixes)
        assert said == "The file is not where uploads are."


def test_numbers_have_limits() -> None:
    assert refusal(mix_job(stem_paths=["a"] * 128)) is None
    assert refusal(mix_job(stem_paths=["a"] * 129)) == (
        "129 stems are too many; at most 128 are allowed."
    )
    assert refusal(mix_job(stem_paths=["a"] * 3), max_stems=2)
    assert refusal(analysis_job(num_peaks=100_000)) is None
    assert refusal(analysis_job(num_peaks=5001), max_num_peaks=5000)
    limits = limits_of(settings_of(max_channels=2, max_sample_rate=96_000, max_duration_s=5))
    assert (limits.max_channels, limits.max_rate_hz, limits.max_duration_s) == (2, 96_000, 5)


@given(st.text(), st.text())
def test_no_two_ids_share_a_key(a: str, b: str) -> None:
    """And none leaves its folder."""
    try:
        safe = safe_id(a), safe_id(b)
    except UnicodeEncodeError:  # no message has half characters
        return
    assert (safe[0] == safe[1]) == (a == b)
    assert all("/" not in one and one.isprintable() and one.isascii() for one in safe)


GREEDY = """
import numpy as np
from tests.unit.fakes import analysis_job, settings_of
from waveflow_ray import jobs
from waveflow_ray.jobs.work import memory_limit

with memory_limit(100):
    small = np.ones(50 * 2**20, np.uint8)
    try:
        np.ones(200 * 2**20, np.uint8)
        print("too much was given")
    except MemoryError:
        pass
large = np.ones(200 * 2**20, np.uint8)  # the limit is gone

jobs._run = lambda *_: np.ones(2**40, np.uint8)
outcome = jobs.perform(analysis_job(), settings_of(), in_worker=True)
print(outcome.error)
"""


def test_a_job_gets_no_more_memory_than_its_limit() -> None:
    """In a process of its own, as the limit is that of a process."""
    done = subprocess.run(
        [sys.executable, "-c", GREEDY], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout == (
        "undecodable_audio: The file takes more than 2048 MB of memory to process.\n"
    ), done.stderr
