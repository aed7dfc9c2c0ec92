"""The policy of the nodes beside the calls that the code makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cloudformation import Stack

ROOT = Path(__file__).parents[2]
ALL = Stack().policy_of("WorkerRole")
PULL = ("LogIn", "Pull")
"""What the host of a node calls before the service is there: the image."""
POLICY = [statement for statement in ALL if statement["Sid"] not in PULL]
ALLOWED = {action for statement in POLICY for action in statement["Action"]}

ACTIONS = {
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "change_message_visibility_batch": "sqs:ChangeMessageVisibility",
    "complete_multipart_upload": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "delete_message_batch": "sqs:DeleteMessage",
    "delete_object": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "get_queue_attributes": "sqs:GetQueueAttributes",
    "get_queue_url": "sqs:GetQueueUrl",
    "head_bucket": "s3:ListBucket",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "put_object": "s3:PutObject",
    "receive_message": "sqs:ReceiveMessage",
    "send_message": "sqs:SendMessage",
    "upload_part": "s3:PutObject",
}
"""What each call of boto3's needs; AWS's Service Authorization Reference."""

OPTIONAL = {"get_bucket_lifecycle_configuration"}
"""`waveflow doctor` leaves out what it may not read."""

NO_REQUESTS = {"generate_presigned_url"}
"""What a client does by itself."""

SERVICE = ("aws", "jobs", "runtime", "doctor")


def calls() -> set[str]:
    """Every call of an S3 or SQS client in the code of the service."""
    found = set()
    for package in SERVICE:
        for path in (ROOT / "waveflow_ray" / package).glob("*.py"):
            text = path.read_text()
            found |= set(re.findall(r"(?:client|s[3q]s?_of\(settings\))\.([a-z_0-9]+)\(", text))
            found |= set(re.findall(r'_ask\(\s*"([a-z_0-9]+)"', text))
            found |= set(re.findall(r'get_paginator\("([a-z_0-9]+)"\)', text))
    return found - {"get_paginator"} - NO_REQUESTS


def test_every_call_of_the_service_is_allowed() -> None:
    """Who adds a call adds it to the policy."""
    assert calls() - ACTIONS.keys() - OPTIONAL == set()
    assert {ACTIONS[name] for name in calls() & ACTIONS.keys()} <= ALLOWED


def test_nothing_is_allowed_that_nobody_calls() -> None:
    """Least privilege: no wildcard, no leftover."""
    assert {ACTIONS[name] for name in calls() & ACTIONS.keys()} == ALLOWED


@pytest.mark.parametrize("statement", POLICY, ids=lambda s: str(s["Sid"]))
def test_each_statement_names_one_thing(statement: dict[str, str]) -> None:
    """One bucket, its objects, one queue, its dead letters."""
    assert statement["Effect"] == "Allow"
    assert "*" not in statement["Resource"].removesuffix("/*")


def test_the_head_may_do_what_workers_may() -> None:
    """Tasks and actors run there too; what it may do beside it is Ray's."""
    head = Stack().policy_of("HeadRole")
    assert [statement for statement in head if statement in ALL] == ALL
    others = {a for s in head if s not in ALL for a in s["Action"]}
    assert {action.partition(":")[0] for action in others} == {"ec2", "iam", "ssm"}


def test_the_documented_actions_are_the_policys() -> None:
    """docs/operations.md lists them by what they are for."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("## Permissions")[2].partition("\n## ")[0]
    assert set(re.findall(r"`((?:s3|sqs):[A-Za-z]+)`", section)) == ALLOWED
