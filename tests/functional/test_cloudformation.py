"""The account that cluster/account makes of cluster/cloudformation.yaml, by moto.

moto's CloudFormation makes queues, roles, instance profiles, the topic, and of the bucket its name
and encryption. The rest of the bucket and the alarms are put here from the template as it
resolves, and read back: so moto has checked what AWS would be asked for.

moto's IAM looks at the action, and at the resource for S3. What rests on other resources or on
conditions is decided from the policies, in tests/unit/test_cloudformation.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from tests.cloudformation import ACCOUNT, REGION, TEMPLATE
from tests.functional.conftest import NAME, Account
from tests.support import receiver
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.cli import app
from waveflow_ray.errors import JobError

BUCKET = f"{NAME}-audio-{ACCOUNT}-{REGION}"


def test_the_template_is_valid() -> None:
    """cfn-lint knows the properties of every resource; it asks nobody."""
    command = [str(Path(sys.executable).with_name("cfn-lint")), str(TEMPLATE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- what was made


def queue(account: Account, name: str) -> dict[str, str]:
    sqs = account.client("sqs")
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])[
        "Attributes"
    ]
    return found


def test_the_queues_are_as_the_documents_say(account: Account) -> None:
    """Lease, retention, redrive; docs/operations.md has the table."""
    jobs, dead = queue(account, f"{NAME}-jobs"), queue(account, f"{NAME}-jobs-dead")
    redrive = {"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": 10}
    assert json.loads(jobs["RedrivePolicy"]) == redrive
    assert jobs["VisibilityTimeout"] == "90"
    assert jobs["MessageRetentionPeriod"] == dead["MessageRetentionPeriod"] == "1209600"
    assert jobs["SqsManagedSseEnabled"] == dead["SqsManagedSseEnabled"] == "true"


def test_the_bucket_is_encrypted(account: Account) -> None:
    found = account.client("s3").get_bucket_encryption(Bucket=BUCKET)
    (rule,) = found["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}


@pytest.mark.parametrize("kind", ["worker", "head"])
def test_the_nodes_have_their_profiles(account: Account, kind: str) -> None:
    """One role in each, which only EC2 can take on."""
    iam = account.client("iam")
    profile = iam.get_instance_profile(InstanceProfileName=f"{NAME}-{kind}")["InstanceProfile"]
    (role,) = profile["Roles"]
    assert role["RoleName"] == f"{NAME}-{kind}"
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}


@pytest.mark.parametrize("kind", ["worker", "head", "deploy"])
def test_the_roles_have_what_the_template_gives_them(account: Account, kind: str) -> None:
    """So what is decided from the template is true of what was made."""
    iam, name = account.client("iam"), f"{NAME}-{kind}"
    policies = iam.list_role_policies(RoleName=name)["PolicyNames"]
    documents = [
        iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
        for policy in policies
    ]
    made = {s["Sid"]: s for document in documents for s in document["Statement"]}
    # moto does not split the default of a list.
    if "Start" in made:
        types = made["Start"]["Condition"]["StringLike"]["ec2:InstanceType"]
        made["Start"]["Condition"]["StringLike"]["ec2:InstanceType"] = types.split(",")
    expected = {s["Sid"]: s for s in account.stack.policy_of(f"{kind.title()}Role")}
    assert made == expected
    assert iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"] == []


def test_somebody_is_told_of_alarms(account: Account) -> None:
    (subscription,) = account.client("sns").list_subscriptions()["Subscriptions"]
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "ops@example.com")
    assert subscription["TopicArn"].endswith(f":{NAME}-alarms")


# --- what moto leaves out


@pytest.fixture(scope="module")
def complete(account: Account) -> Account:
    """The account with what moto's CloudFormation does not make.

    Not the policies of bucket and queues: moto takes their conditions for met, and denies all.
    """
    s3 = account.client("s3")
    made = account.stack.resources
    s3.put_public_access_block(
        Bucket=BUCKET,
        PublicAccessBlockConfiguration=made["Bucket"]["PublicAccessBlockConfiguration"],
    )
    rules = [as_request(rule) for rule in made["Bucket"]["LifecycleConfiguration"]["Rules"]]
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": rules})
    for alarm in account.stack.of_type("AWS::CloudWatch::Alarm").values():
        threshold = {"Threshold": float(alarm["Threshold"])}
        account.client("cloudwatch").put_metric_alarm(**alarm | threshold)
    return account


def as_request(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule of CloudFormation's in the words of S3's API."""
    request = {"ID": rule["Id"], "Status": rule["Status"]}
    request["Filter"] = {"Prefix": rule.get("Prefix", "")}
    if "ExpirationInDays" in rule:
        request["Expiration"] = {"Days": int(rule["ExpirationInDays"])}
    if "ExpiredObjectDeleteMarker" in rule:
        request["Expiration"] = {"ExpiredObjectDeleteMarker": rule["ExpiredObjectDeleteMarker"]}
    if "NoncurrentVersionExpiration" in rule:
        days = int(rule["NoncurrentVersionExpiration"]["NoncurrentDays"])
        request["NoncurrentVersionExpiration"] = {"NoncurrentDays": days}
    if "AbortIncompleteMultipartUpload" in rule:
        request["AbortIncompleteMultipartUpload"] = rule["AbortIncompleteMultipartUpload"]
    return request


def test_the_bucket_is_closed_to_the_public(complete: Account) -> None:
    found = complete.client("s3").get_public_access_block(Bucket=BUCKET)
    assert set(found["PublicAccessBlockConfiguration"].values()) == {True}


def test_there_are_two_alarms(complete: Account) -> None:
    """On the age of the oldest job, and on any dead letter."""
    alarms = complete.client("cloudwatch").describe_alarms()["MetricAlarms"]
    found = {(a["Dimensions"][0]["Value"], a["MetricName"], a["Threshold"]) for a in alarms}
    assert found == {
        (f"{NAME}-jobs", "ApproximateAgeOfOldestMessage", 900.0),
        (f"{NAME}-jobs-dead", "ApproximateNumberOfMessagesVisible", 0.0),
    }
    assert all(a["ComparisonOperator"] == "GreaterThanThreshold" for a in alarms)
    assert all(
        a["AlarmActions"] == [f"arn:aws:sns:{REGION}:{ACCOUNT}:{NAME}-alarms"] for a in alarms
    )


def test_the_doctor_finds_nothing_to_mend(
    complete: Account, no_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bucket and queues, with the lines that cluster/account prints."""
    monkeypatch.chdir(tmp_path)
    done = complete.run("outputs", "--stack", NAME)
    (tmp_path / ".env").write_text(done.stdout)
    for name in ("S3_BUCKET_NAME", "SQS_QUEUE_URL", "SQS_DLQ_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, complete.env[name])
    with receiver() as server:
        monkeypatch.setenv("WEBHOOK_URL", server.url)
        report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    found = [f for f in report["findings"] if f["group"] in ("Settings", "Bucket", "Queue")]
    assert {f["group"] for f in found} == {"Settings", "Bucket", "Queue"}
    assert [f for f in found if f["state"] != "ok"] == []


# --- who may do what


@pytest.mark.parametrize("role", ["worker", "head"])
def test_nodes_work_on_the_bucket_and_on_no_other(account: Account, role: str) -> None:
    """With IAM enforced: what jobs do to objects, and what no job does."""
    account.client("s3").create_bucket(
        Bucket=f"theirs-{role}", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    client = account.client("s3", **account.as_role(role))
    ours, theirs = Bucket(client, BUCKET), Bucket(client, f"theirs-{role}")
    key = f"songs/{role}.wav"
    with account.enforced():
        etag = ours.put_if(key, b"audio", "audio/wav", None)
        assert etag is not None
        assert ours.get(key) == (b"audio", etag)
        assert [found for found, _ in ours.keys(key)] == [key]
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"1")
        client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
        ours.delete(key)
        assert ours.get(key) is None
        for forbidden in (
            lambda: theirs.put_if(key, b"audio", "audio/wav", None),
            lambda: theirs.get(key),
            lambda: list(theirs.keys("")),
        ):
            with pytest.raises(JobError) as raised:
                forbidden()
            assert "AccessDenied" in (raised.value.detail or "")
        assert denied(client.delete_bucket, Bucket=BUCKET)
        assert denied(client.put_bucket_policy, Bucket=BUCKET, Policy="{}")
        assert denied(client.list_buckets)


def test_only_the_head_looks_at_instances(account: Account) -> None:
    """And nobody hands itself more rights."""
    for role in ("worker", "head", "deploy"):
        who = account.as_role(role)
        ec2, iam = account.client("ec2", **who), account.client("iam", **who)
        with account.enforced():
            assert denied(ec2.describe_instances) == (role == "worker")
            assert denied(ec2.describe_subnets) == (role != "deploy")
            assert denied(ec2.describe_volumes)
            assert denied(
                iam.put_role_policy, RoleName=f"{NAME}-{role}", PolicyName="x", PolicyDocument="{}"
            )
            assert denied(iam.create_user, UserName="x")
    worker = account.client("ec2", **account.as_role("worker"))
    with account.enforced():
        assert denied(worker.run_instances, ImageId="ami-1", MinCount=1, MaxCount=1)


def denied(call: Any, **request: Any) -> bool:
    """Whether IAM refuses; any other fault is one of the test."""
    try:
        call(**request)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("AccessDenied", "UnauthorizedOperation"):
            return True
        raise
    return False
