"""The project's cluster file and AWS template in the lab: changed only where the lab differs."""

from __future__ import annotations

import json
import runpy
import secrets
from dataclasses import dataclass
from typing import Any

import yaml

from tests.lab.lab import REPOSITORY, Lab
from waveflow_ray.aws.s3 import Bucket
from waveflow_ray.aws.sqs import Queue

CLUSTER_FILE = REPOSITORY / "ray-cluster.yaml"
PLAIN_AMI = REPOSITORY / "cluster/plain-ami"
TEMPLATE = REPOSITORY / "cluster/cloudformation.yaml"
STACK = "waveflow"
MAX_WORKERS = 3
"""As many as a small machine bears."""
IDLE_MINUTES = 0.5
"""Less, and on a busy machine workers are ended before they get their first job: for Ray, a host
is idle from its start."""
IMPATIENCE = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_NODE_SSH_INTERVAL_S": "1",
    # A host that vanished is missed within 10 s.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
SETTINGS = {
    "LOG_FORMAT": "json",
    "POLL_WAIT_S": "1",
    "VISIBILITY_TIMEOUT_S": "10",
    "WEBHOOK_PAUSE_S": "0.2",
    "WEBHOOK_MAX_PAUSE_S": "1",
    "RETRY_DELAY": "1",
    "DRAIN_TIMEOUT_S": "20",
    "TARGET_LATENCY_S": "5",
}
SETUP = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
)
"""What installs the service: on the lab's hosts it is installed."""


def project_config() -> dict[str, Any]:
    """The cluster file as it is in the repository."""
    config: dict[str, Any] = yaml.safe_load(CLUSTER_FILE.read_text())
    return config


def open_lab(config: dict[str, Any]) -> Lab:
    """The lab for a cluster file; not entered yet."""
    user = config["auth"]["ssh_user"]
    token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"/home/{user}/.waveflow/auth_token",
    }
    return Lab(config["provider"]["region"], user, IMPATIENCE | token)


def lab_config(config: dict[str, Any], image: str, settings: str) -> dict[str, Any]:
    """The variant without Docker; with the lab's image, nothing to install, and less patience."""
    plain = runpy.run_path(str(PLAIN_AMI))["plain"](config)
    types = {
        name: kind | {"node_config": kind["node_config"] | {"ImageId": image}}
        for name, kind in plain["available_node_types"].items()
    }
    return (
        plain
        | {name: [] for name in SETUP}  # left out, Ray would put its own there
        | {
            "available_node_types": types,
            "file_mounts": {path: settings for path in plain["file_mounts"]},
            "idle_timeout_minutes": IDLE_MINUTES,
            "max_workers": MAX_WORKERS,
        }
    )


@dataclass
class Account:
    """What the service finds in AWS; and the settings that name it."""

    bucket: Bucket
    queue: Queue
    dead_letters: Queue
    settings: dict[str, str]

    def left(self) -> tuple[int, int]:
        """Messages in the job queue, whether visible or not; dead letters."""
        facts = self.queue.facts()
        waiting = facts.visible + facts.in_flight + facts.delayed
        return waiting, self.dead_letters.facts().visible


def deploy(lab: Lab) -> Account:
    """Make what the cluster needs of the account."""
    settings = _by_template(lab) if TEMPLATE.exists() else _by_hand(lab)
    sqs = lab.client("sqs")
    return Account(
        bucket=Bucket(lab.client("s3"), settings["S3_BUCKET_NAME"]),
        queue=Queue(sqs, settings["SQS_QUEUE_URL"]),
        dead_letters=Queue(sqs, settings["SQS_DLQ_URL"]),
        settings=settings,
    )


def write(lab: Lab, config: dict[str, Any], settings: dict[str, str]) -> str:
    """Write the lab's cluster file, and the folder of settings that it names; returns its path."""
    image = lab.client("ec2").register_image(Name="lab", RootDeviceName="/dev/sda1")["ImageId"]
    folder = lab.folder / "settings"
    folder.mkdir()
    lines = [f"{name}={value}\n" for name, value in (SETTINGS | settings).items()]
    (folder / ".env").write_text("".join(lines))
    (folder / "auth_token").write_text(secrets.token_hex(32))
    (folder / "auth_token").chmod(0o600)
    path = lab.folder / "ray-cluster.yaml"
    path.write_text(yaml.safe_dump(lab_config(config, image, str(folder)), sort_keys=False))
    return str(path)


def _by_template(lab: Lab) -> dict[str, str]:
    cfn = lab.client("cloudformation")
    cfn.create_stack(
        StackName=STACK,
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    cfn.get_waiter("stack_create_complete").wait(
        StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )
    (stack,) = cfn.describe_stacks(StackName=STACK)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    return {
        "S3_BUCKET_NAME": outputs["BucketName"],
        "SQS_QUEUE_URL": outputs["QueueUrl"],
        "SQS_DLQ_URL": outputs["DeadLettersUrl"],
    }


def _by_hand(lab: Lab) -> dict[str, str]:
    iam, sqs, s3 = (lab.client(name) for name in ("iam", "sqs", "s3"))
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "ec2.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    for name in (f"{STACK}-head", f"{STACK}-worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    bucket = f"{STACK}-audio"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": lab.region})
    dead = sqs.create_queue(QueueName=f"{STACK}-jobs-dead")["QueueUrl"]
    arn = f"arn:aws:sqs:{lab.region}:123456789012:{STACK}-jobs-dead"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 10})
    url = sqs.create_queue(QueueName=f"{STACK}-jobs", Attributes={"RedrivePolicy": policy})
    return {"S3_BUCKET_NAME": bucket, "SQS_QUEUE_URL": url["QueueUrl"], "SQS_DLQ_URL": dead}
