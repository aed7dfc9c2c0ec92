"""Settings of a service; an account that `cluster/account up` has made, on a moto of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.cloudformation import ACCOUNT, REGION, Stack
from tests.support import World
from waveflow_ray.local.aws import LocalAws
from waveflow_ray.settings import Settings, load_settings

SCRIPT = Path(__file__).parents[2] / "cluster" / "account"
NAME = "band"
GITHUB = f"arn:aws:iam::{ACCOUNT}:oidc-provider/token.actions.githubusercontent.com"
PARAMETERS = {
    "AlarmEmail": "ops@example.com",
    "ClusterName": "band",
    "GitHubRepository": "band/waveflow",
    "GitHubProviderArn": GITHUB,
}


@dataclass
class Account:
    """A moto server, the variables that lead to it, and how the template reads there."""

    endpoint: str
    env: dict[str, str]
    stack: Stack

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call cluster/account."""
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=100, check=False
        )

    def client(self, service: str, **credentials: str) -> Any:
        """A client of boto3's; of whoever may do everything, without credentials."""
        who = credentials or {"aws_access_key_id": "all", "aws_secret_access_key": "all"}
        session = boto3.Session(region_name=REGION)  # not the default one, which a test may watch
        return session.client(service, endpoint_url=self.endpoint, **who)

    def as_role(self, role: str) -> dict[str, str]:
        """Credentials of a session of a role of the stack."""
        arn = f"arn:aws:iam::{ACCOUNT}:role/{NAME}-{role}"
        session = self.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")
        given = session["Credentials"]
        return {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """moto asks IAM for every request in the block."""
        try:
            self._reset_auth("0")
            yield
        finally:
            self._reset_auth("inf")

    def _reset_auth(self, free_requests: str) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth",
            data=free_requests.encode(),
            headers={"Content-Type": "text/plain"},  # of a form, moto sees no body
        )
        urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="session")
def bare_account() -> Iterator[Account]:
    """Nothing in it but what moto's server of `waveflow local` has."""
    before = dict(os.environ)
    with LocalAws() as server:
        leads = server.env
        os.environ.clear()
        os.environ.update(before)  # other tests go on with their own server
        names = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        env = before | {name: leads[name] for name in names}
        yield Account(server.endpoint, env, Stack(NAME, **PARAMETERS))


@pytest.fixture(scope="session")
def account(bare_account: Account) -> Account:
    """With the stack in it."""
    given = [f"--set={name}={value}" for name, value in PARAMETERS.items()]
    done = bare_account.run("up", "--stack", NAME, *given)
    assert done.returncode == 0, done.stderr
    return bare_account


@pytest.fixture
def no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a Ray cluster, whatever runs or ran here; the folder that Ray looks in."""
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "ray"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(world: World, tmp_path: Path) -> Settings:
    """Of a service that works on the test's own bucket and queue."""
    return load_settings(
        _env_file=None,
        aws_endpoint_url=world.aws.endpoint,
        s3_bucket_name=world.bucket.name,
        sqs_queue_url=world.queue.url,
        webhook_url="http://127.0.0.1:9",
        scratch_dir=tmp_path / "scratch",
    )
