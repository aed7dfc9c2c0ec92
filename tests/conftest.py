"""Fixtures for the tests that talk to S3 and SQS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.support import World, make_world
from waveflow_ray.local.aws import LocalAws

_numbers = itertools.count()


@pytest.fixture(scope="session")
def aws() -> Iterator[LocalAws]:
    """One moto server for all tests."""
    with LocalAws() as server:
        yield server


@pytest.fixture
def world(aws: LocalAws) -> World:
    """A bucket and a queue of the test's own."""
    return make_world(aws, f"jobs-{next(_numbers)}")
