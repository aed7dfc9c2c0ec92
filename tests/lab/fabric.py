"""Makes a host of every EC2 instance that moto has, and ends it with the instance.

Runs inside the lab: `python -m tests.lab.fabric`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.lab.guard import UNSHARE, only_child
from tests.lab.limits import MemoryLimits
from tests.lab.metadata import Metadata

LOOK_S = 0.5
START_S = 120.0
"""Longest time that other hosts wait for one to be set up."""


@dataclass
class Host:
    """A running instance: the process of `unshare`, and its child, which is pid 1 there."""

    unshare: subprocess.Popen[bytes]
    pid: int
    booted: float


class Fabric:
    """The hosts of one region."""

    def __init__(self, lab: Path, gateway: str, region: str) -> None:
        self.lab, self.gateway = lab, gateway
        self.ec2 = boto3.client("ec2", region_name=region)
        self.metadata = Metadata(lab, region)
        self.limits = MemoryLimits(lab.name)
        self.hosts: dict[str, Host] = {}
        self.started = 0

    def run(self) -> None:
        """For ever."""
        self.metadata.start()
        print(self.limits.why_none or f"memory limits by cgroup v{self.limits.version}")
        while True:
            try:
                self.look()
                (self.lab / "out/ready").touch()
            except (BotoCoreError, ClientError) as error:
                print(f"moto did not answer: {error}")
            time.sleep(LOOK_S)

    def look(self) -> None:
        """Start and end hosts as the account has it now."""
        pages = self.ec2.get_paginator("describe_instances").paginate()
        instances = [
            instance
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]
        running = {
            instance["InstanceId"]: instance
            for instance in instances
            if instance["State"]["Name"] in ("pending", "running")
        }
        self.metadata.instances = {i["PrivateIpAddress"]: i for i in running.values()}
        for name in self.hosts.keys() - running.keys():
            self.end(name)
        waiting = sorted(running.keys() - self.hosts.keys())
        if waiting and not self.starting(running):
            self.metadata.add(running[waiting[0]])
            self.boot(waiting[0], running[waiting[0]])
        overdue = self.metadata.overdue(running.keys())
        if overdue:
            print("their time is up:", *overdue)
            self.ec2.terminate_instances(InstanceIds=overdue)

    def starting(self, running: dict[str, dict[str, Any]]) -> bool:
        """Whether a host is still being set up: the others wait, as if EC2 had needed longer.

        Ray gives a node 30 s to start. Two CPUs do that for one at a time, not for three.
        """
        done = {"Key": "ray-node-status", "Value": "up-to-date"}
        deadline = time.monotonic() - START_S
        return any(
            done not in running[name].get("Tags", []) and host.booted > deadline
            for name, host in self.hosts.items()
        )

    def boot(self, name: str, instance: dict[str, Any]) -> None:
        """Start the host of an instance."""
        pairs = self.ec2.describe_key_pairs(KeyNames=[instance["KeyName"]], IncludePublicKey=True)
        folder = self.lab / "nodes" / name
        for part in ("disk", "tmp"):
            (folder / part).mkdir(parents=True)
        group = self.limits.make(name)
        variables = {
            "INSTANCE": name,
            "ADDRESS": instance["PrivateIpAddress"],
            "PUBLIC_ADDRESS": instance.get("PublicIpAddress", ""),
            "GATEWAY": self.gateway,
            "PUBLIC_KEY": pairs["KeyPairs"][0]["PublicKey"].strip(),
            "PROFILE": profile(json.loads(os.environ["NODE_ENV"])),
            "CGROUP": str(group or ""),
            "CGROUP_SEEN": self.limits.seen,
        }

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        with (self.lab / f"out/{name}.log").open("wb") as log:
            unshare = subprocess.Popen(
                [*UNSHARE, "bash", Path(__file__).with_name("node.sh")],
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=enter,
            )
        pid = only_child(unshare.pid)
        self.started += 1
        cable = f"veth{self.started}"
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", cable, "master", "br0", "up")
        self.hosts[name] = Host(unshare, pid, time.monotonic())
        (folder / "pid").write_text(str(pid))
        print(f"{time.time():.2f} booted {name} {instance['PrivateIpAddress']}")

    def end(self, name: str) -> None:
        """The host of an instance that was terminated is gone at once, with all its processes."""
        host = self.hosts.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(host.pid, signal.SIGKILL)
        host.unshare.wait()
        self.limits.remove(name)
        shutil.rmtree(self.lab / "nodes" / name, ignore_errors=True)
        print(f"{time.time():.2f} ended {name}")


def profile(env: dict[str, str]) -> str:
    """What a login shell of the host reads."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    Fabric(Path(os.environ["LAB"]), os.environ["GATEWAY"], os.environ["AWS_DEFAULT_REGION"]).run()
