"""The short form of `make chaos`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos import ZERO, Sizes, campaign
from waveflow_ray.local.aws import LocalAws

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(400)]

SHORT = Sizes(hashes=60, analyses=10, mixes=3, pairs=5, kills=9, away_s=3.0)
"""Every kind of blow once."""


def test_whatever_dies_every_job_ends_once(aws: LocalAws, tmp_path: Path) -> None:
    """Workers, ingress, reporter, service and a node are killed, and any answer may fail."""
    found = campaign(SHORT, 1, aws, tmp_path, timeout_s=240)
    wrong = {name: found[name] for name in ZERO if found[name]}
    assert not wrong, json.dumps(found, indent=2)
