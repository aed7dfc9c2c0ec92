"""The calls of the installed Ray's AWS provider beside the policies of the roles that make them.

Ray runs as it does in `ray up` and in the autoscaler of the head, against moto. Every call that it
makes is noted, and decided from the template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.commands import _bootstrap_config, _get_node_provider

from tests.cloudformation import REGION
from tests.functional.conftest import NAME, Account
from tests.iam import allows, needs

KEY = f"ray-autoscaler_{REGION}"
"""The key pair that Ray looks for; without it, Ray would make one."""


@dataclass
class Calls:
    """Operations of EC2's and IAM's, with their requests."""

    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.made.append((model.name, dict(params)))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.made}


def one_type(**_: Any) -> tuple[Any, dict[str, Any]]:
    """An answer in place of moto's, which has all types and takes seconds to tell them."""
    cpu, memory = {"DefaultVCpus": 2}, {"SizeInMiB": 4096}
    types = [{"InstanceType": "c7i.large", "VCpuInfo": cpu, "MemoryInfo": memory}]
    return SimpleNamespace(status_code=200), {"InstanceTypes": types}


@pytest.fixture
def calls(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Ray's calls of AWS, from an operator's machine that has the private key."""
    ec2 = account.client("ec2")
    if not ec2.describe_key_pairs()["KeyPairs"]:
        ec2.create_key_pair(KeyName=KEY)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / f"{KEY}.pem").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, account.env[name])
    noted, session = Calls(), boto3.Session()
    session.events.register("provide-client-params", noted.note)
    session.events.register("before-call.ec2.DescribeInstanceTypes", one_type)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    caches = (utils.resource_cache, utils.client_cache)
    for cache in caches:
        cache.cache_clear()
    yield noted
    for cache in caches:
        cache.cache_clear()


def cluster(keep_stopped: bool = False) -> dict[str, Any]:
    """A cluster file as an operator writes it."""

    def node(kind: str) -> dict[str, Any]:
        config = {
            "InstanceType": "c7i.large",
            "ImageId": "ami-0a0a0a0a0a0a0a0a0",
            "IamInstanceProfile": {"Name": f"{NAME}-{kind}"},
        }
        return {"resources": {"CPU": 2}, "node_config": config, "min_workers": 0, "max_workers": 2}

    return {
        "cluster_name": "band",
        "max_workers": 2,
        "provider": {"type": "aws", "region": REGION, "cache_stopped_nodes": keep_stopped},
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": {"head": node("head"), "worker": node("worker")},
        "head_node_type": "head",
    }


def start(config: dict[str, Any], kind: str) -> tuple[Any, str]:
    """A node of that kind, as Ray starts it; its provider and its id."""
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    tags = {
        "ray-node-type": kind,
        "ray-node-name": f"ray-band-{kind}",
        "ray-node-status": "uninitialized",
        "ray-launch-config": "0",
        "ray-user-node-type": kind,
    }
    node_config = config["available_node_types"][kind]["node_config"]
    provider.create_node(dict(node_config), tags, 1)
    (node,) = provider.non_terminated_nodes({"ray-node-type": kind})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    return provider, node


def tags_in(account: Account) -> Callable[[str], dict[str, str]]:
    def tags(name: str) -> dict[str, str]:
        found = account.client("ec2").describe_tags(
            Filters=[{"Name": "resource-id", "Values": [name]}]
        )
        return {tag["Key"]: tag["Value"] for tag in found["Tags"]}

    return tags


def refused(account: Account, role: str, calls: Calls) -> list[Any]:
    """What the role may not do of what was done."""
    policy, tags = account.stack.policy_of(role), tags_in(account)
    asked = [need for name, request in calls.made for need in needs(name, request, tags)]
    assert asked
    return [need for need in asked if not allows(policy, need)]


@pytest.mark.parametrize("keep_stopped", [False, True])
def test_the_head_may_do_what_its_autoscaler_does(
    account: Account, calls: Calls, keep_stopped: bool
) -> None:
    """Start a worker, tag it, end it; or stop it and start it again, as is Ray's default."""
    config = _bootstrap_config(cluster(keep_stopped), no_config_cache=True)
    calls.made.clear()  # those of the operator
    provider, worker = start(config, "worker")
    provider.terminate_nodes([worker])
    if keep_stopped:
        provider, worker = start(config, "worker")
        provider.terminate_node(worker)
    assert refused(account, "HeadRole", calls) == []
    ends = {"StopInstances", "StartInstances"} if keep_stopped else {"TerminateInstances"}
    assert calls.names == {"DescribeInstances", "RunInstances", "CreateTags"} | ends
    account.client("ec2").terminate_instances(InstanceIds=[worker])


def test_the_deployer_may_do_what_ray_up_and_ray_down_do(account: Account, calls: Calls) -> None:
    """Find subnets, make the security group, start the head; end all nodes."""
    config = _bootstrap_config(cluster(), no_config_cache=True)
    provider, head = start(config, "head")
    provider.terminate_nodes([head])
    assert refused(account, "DeployRole", calls) == []
    assert calls.names >= {"DescribeSubnets", "DescribeInstanceTypes", "DescribeKeyPairs"}
    assert not {name for name in calls.names if "Role" in name or "Profile" in name}


def test_the_head_cannot_give_its_own_role_away(account: Account, calls: Calls) -> None:
    """A worker with the head's profile could start instances; so could who takes over its task."""
    config = _bootstrap_config(cluster(), no_config_cache=True)
    calls.made.clear()
    config["available_node_types"]["worker"]["node_config"]["IamInstanceProfile"] = {
        "Name": f"{NAME}-head"
    }
    provider, worker = start(config, "worker")
    provider.terminate_nodes([worker])
    actions = {action for action, _, _ in refused(account, "HeadRole", calls)}
    assert actions == {"iam:PassRole"}
