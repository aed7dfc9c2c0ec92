"""Damaged and hostile files: each ends in a waveform or a listed error, and costs nothing else.

The long run, with 500 files of each format, is ``make fuzz``.
"""

from __future__ import annotations

import pytest

from tests.fuzz import FORMATS, MEMORY_MB, campaign
from waveflow_ray.errors import ErrorCode

COUNT = 40


@pytest.mark.timeout(600)
def test_no_file_takes_the_decoder_down() -> None:
    found = campaign(COUNT, seed=1)
    assert found["bad"] == []
    assert found["a valid file afterwards"] == ["SUCCESS", "SUCCESS"]
    listed = {"SUCCESS", "truncated", *map(str, ErrorCode)} - {"internal_error"}
    for name in FORMATS:
        outcomes = found["outcomes"][name]
        assert outcomes.keys() <= listed, name
        assert sum(outcomes.values()) >= 2 * COUNT
        # The files are neither all useless nor all untouched.
        assert outcomes.get("SUCCESS", 0) + outcomes.get("truncated", 0) >= 5, name
        assert outcomes.keys() & {"undecodable_audio", "truncated_audio"}, name
    # What a process that has just compiled may hold is not the files' doing.
    assert found["peak_mb"] < MEMORY_MB + 500
