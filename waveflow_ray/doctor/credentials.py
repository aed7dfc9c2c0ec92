"""Whose name AWS is asked in, and whether the clock is right enough for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from waveflow_ray.aws.clients import new_session, s3_of
from waveflow_ray.doctor.findings import Finding, Group
from waveflow_ray.settings import Settings

GROUP = Group("AWS")
TIMEOUT_S = 4
SKEW_WARN_S = 30.0
SKEW_FAIL_S = 300.0
"""AWS refuses signatures that are older; https://docs.aws.amazon.com/IAM/latest/UserGuide."""


def check(settings: Settings) -> Iterator[Finding]:
    """Credentials, identity, clock."""
    found = new_session().get_credentials()
    if found is None:
        yield GROUP.fail(
            "credentials",
            "none found",
            "give the machine a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
            "environment (not in .env, which boto3 does not read)",
        )
        return
    yield GROUP.ok("credentials", f"found ({found.method})")
    yield _identity(settings)
    yield _clock(settings)


def _identity(settings: Settings) -> Finding:
    if settings.aws_endpoint_url:
        return GROUP.ok("endpoint", f"{settings.aws_endpoint_url} is asked instead of AWS")
    sts = boto3.Session(botocore_session=new_session()).client(
        "sts",
        region_name=settings.aws_region,
        config=Config(
            connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1}
        ),
    )
    try:
        return GROUP.ok("identity", sts.get_caller_identity()["Arn"])
    except (ClientError, BotoCoreError) as error:
        return GROUP.fail(
            "identity",
            str(error),
            "the credentials have ended or are wrong, or STS is out of reach",
        )


def _clock(settings: Settings) -> Finding:
    try:
        answer = s3_of(settings).head_bucket(Bucket=settings.s3_bucket_name)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    theirs = parsedate_to_datetime(headers["date"])
    skew_s = abs((datetime.now(UTC) - theirs).total_seconds())
    found, mend = f"{skew_s:.0f} s beside that of S3", "synchronise the clock (chrony, ntpd)"
    if skew_s >= SKEW_FAIL_S:
        return GROUP.fail("clock", found, mend)
    return GROUP.judge("clock", skew_s < SKEW_WARN_S, found, mend)
