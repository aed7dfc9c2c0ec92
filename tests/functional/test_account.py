"""cluster/account, as an operator calls it: up again and again, down, and what it refuses."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from tests.cloudformation import ACCOUNT, REGION
from tests.functional.conftest import NAME, Account

_numbers = count()


@pytest.fixture
def stack() -> str:
    """The name of a stack of the test's own."""
    return f"own-{next(_numbers)}"


def bucket_of(stack: str) -> str:
    return f"{stack}-audio-{ACCOUNT}-{REGION}"


def buckets(account: Account) -> set[str]:
    return {bucket["Name"] for bucket in account.client("s3").list_buckets()["Buckets"]}


def up(account: Account, stack: str, *given: str) -> dict[str, str]:
    """It has to succeed; returns what it printed for .env."""
    done = account.run("up", "--stack", stack, *given)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def parameters(account: Account, stack: str) -> dict[str, str]:
    described = account.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    return {p["ParameterKey"]: p["ParameterValue"] for p in described["Parameters"]}


def down(account: Account, stack: str, *how: str) -> Any:
    return account.run("down", "--stack", stack, *how)


def test_it_prints_what_the_service_needs(bare_account: Account, stack: str) -> None:
    """The same lines by `outputs`; nothing else on standard output."""
    made = up(bare_account, stack)
    assert made == {
        "AWS_REGION": REGION,
        "S3_BUCKET_NAME": bucket_of(stack),
        "SQS_QUEUE_URL": f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{stack}-jobs",
        "SQS_DLQ_URL": f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{stack}-jobs-dead",
    }
    outputs = bare_account.run("outputs", "--stack", stack)
    assert f"# WorkerInstanceProfile: {stack}-worker" in outputs.stdout
    assert set(made) == {
        line.split("=")[0] for line in outputs.stdout.splitlines() if "# " not in line
    }


def test_up_again_changes_nothing_and_keeps_what_was_set(bare_account: Account, stack: str) -> None:
    first = up(bare_account, stack, "--set", "OldestMessageSeconds=600")
    again = bare_account.run("up", "--stack", stack)
    assert again.returncode == 0
    assert "as it should be" in again.stderr
    assert parameters(bare_account, stack)["OldestMessageSeconds"] == "600"
    assert up(bare_account, stack) == first


def test_down_takes_an_empty_bucket_along(bare_account: Account, stack: str) -> None:
    """And is done when there is nothing left to do."""
    up(bare_account, stack)
    assert down(bare_account, stack).returncode == 0
    assert bucket_of(stack) not in buckets(bare_account)
    again = down(bare_account, stack)
    assert (again.returncode, "there is no stack" in again.stderr) == (0, True)
    assert bare_account.run("outputs", "--stack", stack).returncode == 1


def test_down_leaves_recordings(bare_account: Account, stack: str) -> None:
    """Refused without a word about the bucket; with it the bucket stays, and can be used again."""
    bucket = bucket_of(stack)
    up(bare_account, stack)
    bare_account.client("s3").put_object(Bucket=bucket, Key="songs/a.wav", Body=b"audio")
    refused = down(bare_account, stack)
    assert (refused.returncode, "--keep-bucket" in refused.stderr) == (1, True)
    assert down(bare_account, stack, "--keep-bucket").returncode == 0
    body = bare_account.client("s3").get_object(Bucket=bucket, Key="songs/a.wav")["Body"]
    assert body.read() == b"audio"
    there = bare_account.run("up", "--stack", stack, "--set", f"BucketName={bucket}")
    assert (there.returncode, "CreateBucket=false" in there.stderr) == (1, True)
    given = ("--set", f"BucketName={bucket}", "--set", "CreateBucket=false")
    assert up(bare_account, stack, *given)["S3_BUCKET_NAME"] == bucket
    assert down(bare_account, stack).returncode == 0, "the bucket is not the stack's"
    assert bucket in buckets(bare_account)


def test_down_leaves_messages(bare_account: Account, stack: str) -> None:
    """Jobs that wait are lost only if that is said."""
    url = up(bare_account, stack)["SQS_QUEUE_URL"]
    bare_account.client("sqs").send_message(QueueUrl=url, MessageBody="{}")
    refused = down(bare_account, stack)
    assert (refused.returncode, "1 messages" in refused.stderr) == (1, True)
    assert down(bare_account, stack, "--discard-messages").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "usage"),
        (("up", "--stack", "Big_Name"), 2, "lower-case"),
        (("up", "--set", "AlarmEmail"), 2, "NAME=VALUE"),
        (("up", "--set", "Nonsense=1"), 1, "there is only AlarmEmail"),
        (("up", "--set", "BucketName=nobodys", "--set", "CreateBucket=false"), 1, "no bucket"),
        (("outputs", "--stack", "nobodys"), 1, "there is no stack nobodys"),
        (("outputs", "--stack", NAME, "--region", "eu-central-1"), 1, "in eu-central-1"),
    ],
)
def test_errors_are_one_line(
    bare_account: Account, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = bare_account.run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_examples_and_exit_codes(bare_account: Account) -> None:
    text = bare_account.run("--help").stdout
    assert "examples:" in text
    assert "exit codes:" in text
