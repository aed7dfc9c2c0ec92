"""Credentials of a role come from the instance metadata service, which may be slow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from tests.support import PlainHandler, serving
from waveflow_ray.aws.clients import new_session

SLOW_S = 2.0
"""Boto3 by itself waits a second, and takes what it can get without a token then: nothing."""
ROLE = {
    "Code": "Success",
    "AccessKeyId": "id-of-the-role",
    "SecretAccessKey": "secret",
    "Token": "token",
    "Expiration": "2099-01-01T00:00:00Z",
}


@contextmanager
def slow_metadata() -> Iterator[str]:
    """An instance metadata service, version 2, whose first answer takes its time."""
    slow = iter([SLOW_S])

    class Handler(PlainHandler, BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            time.sleep(next(slow, 0.0))
            self.answer(200, "a-token")

        def do_GET(self) -> None:
            if self.headers["x-aws-ec2-metadata-token"] != "a-token":
                self.answer(401, "")
            elif self.path.rstrip("/").endswith("security-credentials"):
                self.answer(200, "role")
            else:
                self.answer(200, json.dumps(ROLE))

    with serving(Handler) as url:
        yield url


def test_a_slow_metadata_service_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that is starting, with every CPU busy."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with slow_metadata() as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        found = new_session().get_credentials()
        assert found is not None
        assert found.access_key == "id-of-the-role"
