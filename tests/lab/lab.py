"""`Lab`: an AWS account whose EC2 instances are real hosts, all of it on this machine.

Everything runs in network, mount, pid, uts and ipc namespaces of its own, and ends with them:
when the block is left, and also when the process that opened it is killed.
"""

from __future__ import annotations

import compileall
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config

from tests.lab.account import PORT
from tests.support import wait_until

REPOSITORY = Path(__file__).parents[2]
GATEWAY = "172.31.240.1"
"""Address of the bridge, in the network of moto's default VPC: AWS, and what the test serves."""
ENDPOINT = f"http://{GATEWAY}:{PORT}"
PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "/usr/sbin/sshd": "openssh-server",
}
PROBE = """
set -e; d=$(mktemp -d); mount -t tmpfs tmpfs $d; mkdir $d/u $d/w $d/m
mount -t overlay overlay -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/m
umount $d/m $d; rmdir $d; ip link add br0 type bridge; ip link add v0 type veth peer name v1
"""
CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why the lab cannot run on this machine; empty if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the lab needs Linux and root"
    missing = sorted({package for name, package in PROGRAMS.items() if not shutil.which(name)})
    if missing:
        return f"the lab needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
    command = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "bash", "-c"]
    probe = subprocess.run([*command, PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"the lab needs namespaces, overlays and bridges: {probe.stderr.strip()}"
    return ""


class Lab:
    """``with Lab(...) as lab``: the calling thread, and threads it starts, are in its network.

    Args:
        region: of the account.
        ssh_user: who may log in on the hosts.
        node_env: more variables for whoever logs in there.
    """

    def __init__(
        self, region: str, ssh_user: str = "ubuntu", node_env: dict[str, str] | None = None
    ) -> None:
        self.region, self.ssh_user = region, ssh_user
        # Not below /tmp, which the lab has of its own; and short, for the sockets of Ray and ssh.
        self.folder = Path(tempfile.mkdtemp(prefix="waveflow-lab-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        for part in ("out", "nodes", "notices", "kept", "tmp", "home/.ssh", "numba"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "numba").chmod(0o777)
        self.shared = {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(REPOSITORY),
            "NUMBA_CACHE_DIR": str(self.folder / "numba"),  # compiled once, not on every host
            "AWS_ENDPOINT_URL": ENDPOINT,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.node_env = self.shared | (node_env or {})
        self._clients: dict[str, Any] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._outside = -1
        self._pid = 0

    @property
    def operator_env(self) -> dict[str, str]:
        """The environment of commands, and of the lab itself: an administrator's account."""
        return self.shared | {
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "AWS_ACCESS_KEY_ID": "lab",
            "AWS_SECRET_ACCESS_KEY": "lab",
            "AWS_DEFAULT_REGION": self.region,
        }

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab and remove what it left."""
        if self._outside >= 0:
            _enter_network(self._outside)
            os.close(self._outside)
            self._outside = -1
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()  # the guard ends the lab then
            self._guard.wait(60)
            self._guard = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, service: str) -> Any:
        """A boto3 client of the administrator."""
        if service not in self._clients:
            self._clients[service] = self._new_client(service)
        return self._clients[service]

    def _new_client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=self.region,
            endpoint_url=ENDPOINT,
            aws_access_key_id="lab",
            aws_secret_access_key="lab",
            config=Config(max_pool_connections=32),
        )

    def operator(self, command: str, timeout_s: float = 300.0) -> str:
        """Run a command as the operator, in the repository; returns what it printed.

        Raises:
            AssertionError: it failed; with its output.
        """
        shell = ["bash", "-c", f"cd {REPOSITORY}; {command}"]
        return self._run(self._inside(), self.operator_env, shell, timeout_s)

    def shell(self) -> None:
        """A shell of the operator, at this terminal, until it is left."""
        variables = [f"{name}={value}" for name, value in self.operator_env.items()]
        subprocess.run([*self._inside(), "env", "-i", *variables, "bash"], check=False)

    def node(
        self, instance: str, command: str, *, user: str | None = None, timeout_s: float = 120.0
    ) -> str:
        """Run a command on an instance's host, by default as who logs in there.

        Raises:
            AssertionError: it failed, or the host is gone.
        """
        pid = (self.folder / f"nodes/{instance}/pid").read_text()
        uid = "0" if user == "root" else "4000"
        enter = ["nsenter", "-t", pid, "-m", "-n", "-p", "-u", "-i", "-r", "-w", "-S", uid]
        home = "/root" if user == "root" else f"/home/{self.ssh_user}"
        shell = ["bash", "--login", "-c", f"cd {home}; {command}"]
        return self._run(
            [*self._inside(), *enter, "-G", uid, "--"], {"HOME": home}, shell, timeout_s
        )

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """The account's instances, as EC2 describes them; running ones by default."""
        filters = [{"Name": "instance-state-name", "Values": states or ("pending", "running")}]
        pages = self.client("ec2").get_paginator("describe_instances").paginate(Filters=filters)
        found = [r["Instances"] for page in pages for r in page["Reservations"]]
        return [instance for instances in found for instance in instances]

    def terminate(self, *instances: str) -> None:
        """Terminate instances by the EC2 API, and wait until their hosts are gone."""
        self.client("ec2").terminate_instances(InstanceIds=list(instances))
        gone = [self.folder / "nodes" / name for name in instances]
        wait_until(lambda: not any(folder.exists() for folder in gone), 30, self.logs)

    def spot_notice(self, instance: str, seconds: float = 120.0) -> None:
        """The instance's metadata says that EC2 takes it after so long; then EC2 does."""
        path = self.folder / "notices" / instance
        path.with_suffix(".new").write_text(str(time.time() + seconds))
        path.with_suffix(".new").rename(path)

    def spot_capacity(self, there: bool) -> None:
        """Whether EC2 launches spot instances."""
        refuse = self.folder / "no-spot"
        refuse.unlink(missing_ok=True) if there else refuse.touch()

    def logs(self) -> str:
        """What the lab itself and the hosts' sshd logged, the end of each."""
        parts = []
        for path in sorted((self.folder / "out").glob("*.log")):
            if path.name != "moto.log":
                parts.append(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}")
        return "\n".join(parts)

    def requests(self) -> list[str]:
        """The lines of moto's log: one for each request."""
        return (self.folder / "out/moto.log").read_text(errors="replace").splitlines()

    def _start(self) -> None:
        # Who logs in on a host could not keep what is compiled there.
        compileall.compile_dir(REPOSITORY / "waveflow_ray", quiet=1)
        visible = dict.fromkeys(map(str, (REPOSITORY, sys.prefix, sys.base_prefix)))
        lab_env = {
            "LAB": str(self.folder),
            "REPOSITORY": str(REPOSITORY),
            "VISIBLE": " ".join(visible),
            "GATEWAY": GATEWAY,
            "SSH_USER": self.ssh_user,
            "NODE_ENV": json.dumps(self.node_env),
        }
        with (self.folder / "out/guard.log").open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.guard", str(self.folder)],
                env=self.operator_env | lab_env,
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the test, which then closes the lab
            )
        ready = self.folder / "out/ready"
        wait_until(lambda: ready.exists() or self._ended(), 60, self.logs)
        assert ready.exists(), f"the lab did not start\n{self.logs()}"
        self._pid = int((self.folder / "out/pid").read_text())
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY)
        try:
            _enter_network(inside)
        finally:
            os.close(inside)

    def _ended(self) -> bool:
        return self._guard is None or self._guard.poll() is not None

    def _inside(self) -> list[str]:
        return ["nsenter", "-t", str(self._pid), "-n", "-m", "-p", "-u", "-i", "--"]

    def _run(
        self, enter: list[str], env: dict[str, str], shell: list[str], timeout_s: float
    ) -> str:
        # A file: what a command leaves running (ssh's master) would hold a pipe open.
        with tempfile.TemporaryFile() as output:
            variables = [f"{name}={value}" for name, value in env.items()]
            done = subprocess.run(
                [*enter, "env", "-i", *variables, *shell],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=timeout_s,
                check=False,
            )
            output.seek(0)
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.read().decode(errors="replace"))
        assert done.returncode == 0, f"{shell[-1]} ended with {done.returncode}\n{text[-6000:]}"
        return text


def _enter_network(descriptor: int) -> None:
    """Put the calling thread into a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
