"""boto3 clients, one of each per process."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from waveflow_ray.aws.connections import Connections, behind_a_proxy
from waveflow_ray.aws.wire import Wire
from waveflow_ray.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

METADATA = {"metadata_service_timeout": 5, "metadata_service_num_attempts": 2}
"""Seconds and attempts for an instance's credentials, where nothing else is set. By itself boto3
asks once, for a second: on a node that is just starting and busy that can be too short."""
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30  # below the visibility timeout, above the long poll of 20 s
_making = threading.Lock()  # a session is for one thread at a time


def new_session() -> botocore.session.Session:
    """A session that is patient with the instance metadata service."""
    return botocore.session.Session(
        session_vars={name: (name, f"AWS_{name.upper()}", at, int) for name, at in METADATA.items()}
    )


@lru_cache(maxsize=1)
def _session() -> tuple[botocore.session.Session, boto3.Session]:
    """Those of this process: credentials are fetched once, and renewed for all."""
    core = new_session()
    return core, boto3.Session(botocore_session=core)


@lru_cache(maxsize=4)
def s3_client(region: str, endpoint_url: str | None) -> S3Client:
    """The S3 client of this process. Thread-safe."""
    with _making:
        return _session()[1].client(
            "s3", region_name=region, endpoint_url=endpoint_url, config=_config(retries=4)
        )


@lru_cache(maxsize=4)
def sqs_client(region: str, endpoint_url: str | None) -> SQSClient:
    """The SQS client of this process. Thread-safe."""
    with _making:
        return _session()[1].client(
            "sqs", region_name=region, endpoint_url=endpoint_url, config=_config(retries=3)
        )


def s3_of(settings: Settings) -> S3Client:
    """The S3 client for these settings."""
    return s3_client(settings.aws_region, settings.aws_endpoint_url)


@lru_cache(maxsize=8)
def s3_wire(region: str, endpoint_url: str | None, bucket: str) -> Wire | None:
    """For the plain requests to a bucket; None where only boto3 can make them. Thread-safe."""
    if ":" in bucket or bucket.endswith("--x-s3"):
        return None  # an access point, a directory bucket: they sign otherwise
    client = s3_client(region, endpoint_url)
    try:
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})
    except BotoCoreError:
        return None
    connections = _connections(url, "s3", client.meta.region_name)
    folder = urlsplit(url).path.removesuffix("/key")
    return None if connections is None else Wire(connections, folder)


@lru_cache(maxsize=4)
def sqs_connections(region: str, endpoint_url: str | None) -> Connections | None:
    """For the plain requests to SQS; None where only boto3 can make them. Thread-safe."""
    meta = sqs_client(region, endpoint_url).meta
    return _connections(meta.endpoint_url, "sqs", meta.region_name)


def wire_for(settings: Settings) -> Wire | None:
    """The wire for these settings."""
    return s3_wire(settings.aws_region, settings.aws_endpoint_url, settings.s3_bucket_name)


def sqs_of(settings: Settings) -> SQSClient:
    """The SQS client for these settings."""
    return sqs_client(settings.aws_region, settings.aws_endpoint_url)


def _connections(url: str, service: str, region: str) -> Connections | None:
    session, _ = _session()
    credentials = session.get_credentials()
    if credentials is None or behind_a_proxy(url):
        return None
    return Connections(
        url,
        service,
        region,
        credentials,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        read_timeout_s=READ_TIMEOUT_S,
        verify=session.get_config_variable("ca_bundle"),
    )


def _config(retries: int) -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=32,
        retries={"mode": "standard", "total_max_attempts": retries},
        # Works for every endpoint: AWS, moto and emulators on an IP address.
        s3={"addressing_style": "auto"},
    )
