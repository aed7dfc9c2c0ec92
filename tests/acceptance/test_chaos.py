"""A short campaign of ``make chaos``: everything is killed once, and every job ends once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import ZERO, Sizes, campaign
from waveflow_ray.local.aws import LocalAws

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]


def test_whatever_dies_every_job_has_one_outcome(aws: LocalAws, tmp_path: Path) -> None:
    sizes = Sizes(hashes=60, analyses=10, mixes=3, pairs=5, kills=9, away_s=3.0)
    found = campaign(sizes, seed=1, aws=aws, folder=tmp_path, timeout_s=240)
    assert {name: found[name] for name in ZERO} == dict.fromkeys(ZERO, 0), found
    assert found["jobs"] == 60 + 10 + 3 + 10 + 1
    assert sum(found["killed"].values()) >= 5
