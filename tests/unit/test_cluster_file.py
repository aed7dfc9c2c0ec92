"""ray-cluster.yaml beside Ray's schema, the template of the account, the image and the commands."""

from __future__ import annotations

import copy
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.main import get_command
from typer.testing import CliRunner

from tests.cloudformation import Stack
from waveflow_ray.cli import app
from waveflow_ray.runtime.demand import HEAVY_CPUS, LIGHT_CPUS
from waveflow_ray.runtime.placement import HEAVY, LIGHT

ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
TYPES: dict[str, Any] = CLUSTER["available_node_types"]
WORKERS = {name: kind for name, kind in TYPES.items() if name != CLUSTER["head_node_type"]}
PLAIN: dict[str, Any] = runpy.run_path(str(ROOT / "cluster" / "plain-ami"))["plain"](CLUSTER)
STARTS = {
    "head": CLUSTER["head_start_ray_commands"],
    "worker": CLUSTER["worker_start_ray_commands"],
}


@pytest.mark.parametrize("config", [CLUSTER, PLAIN], ids=["docker", "plain"])
def test_ray_takes_the_file(config: dict[str, Any]) -> None:
    """By its own schema and checks, with Docker and without."""
    validate_config(prepare_config(copy.deepcopy(config)))


def test_the_names_are_those_of_the_account() -> None:
    """The roles may only touch a cluster of that name, and are handed out by their profiles."""
    stack = Stack()
    assert CLUSTER["cluster_name"] == stack.values["ClusterName"]
    profiles = {
        p["InstanceProfileName"] for p in stack.of_type("AWS::IAM::InstanceProfile").values()
    }
    used = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in TYPES.values()}
    assert used == profiles
    types = {kind["node_config"]["InstanceType"] for kind in TYPES.values()}
    assert types <= set(stack.values["InstanceTypes"])


def test_spot_comes_first_and_on_demand_can_be_asked_for() -> None:
    """By priority and label; the two types differ in nothing else."""
    spot, ondemand = WORKERS["worker-spot"], WORKERS["worker-ondemand"]
    assert spot["priority"] > ondemand["priority"]
    assert (spot["labels"], ondemand["labels"]) == ({"market": "spot"}, {"market": "on-demand"})
    market = spot["node_config"].pop("InstanceMarketOptions")
    assert market["MarketType"] == "spot"
    assert spot["node_config"] == ondemand["node_config"]
    spot["node_config"]["InstanceMarketOptions"] = market


def test_workers_come_from_nothing_and_have_room_for_their_jobs() -> None:
    """All tasks that fit the CPUs of a node fit the memory that Ray reckons with."""
    for kind in WORKERS.values():
        assert kind["min_workers"] == 0
        assert kind["max_workers"] == CLUSTER["max_workers"]
        cpus = kind["resources"]["CPU"]
        heavy = int(cpus / HEAVY_CPUS)
        light = round((cpus - heavy * HEAVY_CPUS) / LIGHT_CPUS)
        assert heavy * HEAVY["memory"] + light * LIGHT["memory"] <= kind["resources"]["memory"]


def test_no_dashboard_is_open() -> None:
    """Ray lets in ssh; the file opens nothing beside it, and the dashboard listens to this host."""
    assert "IpPermissions" not in CLUSTER["provider"]["security_group"]
    assert "--dashboard-host=127.0.0.1" in " ".join(STARTS["head"])
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]


@pytest.mark.parametrize("node", STARTS)
def test_the_start_commands_are_commands(node: str) -> None:
    """`waveflow node up` takes them, and what follows are options that `ray start` knows."""
    (command,) = STARTS[node]
    words = shlex.split(command)
    assert words[:4] == ["waveflow", "node", "up", "--"]
    known = subprocess.run(
        [Path(sys.executable).with_name("ray"), "start", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for word in words[4:]:
        assert word.partition("=")[0] in known
    assert ("--head" in words) == (node == "head")


def test_what_is_mounted_is_where_the_keeper_looks() -> None:
    """Its folder, in the home of the image's user or of the host's."""
    ((folder, source),) = CLUSTER["file_mounts"].items()
    assert (ROOT / source).is_dir()
    assert f"RAY_AUTH_TOKEN_PATH={folder}/auth_token" in " ".join(CLUSTER["docker"]["run_options"])
    home = re.search(r"ENV HOME=(\S+)", (ROOT / "Dockerfile").read_text())
    assert home is not None
    keeper = get_command(app).commands["node"].commands["up"]  # type: ignore[attr-defined]
    (default,) = (option.default for option in keeper.params if option.name == "folder")
    assert folder == str(default).replace("~", home[1])
    assert list(PLAIN["file_mounts"]) == [str(default).replace("~", "/home/ubuntu")]


@pytest.mark.parametrize("script", ["account", "deploy", "plain-ami", "waveflow"])
def test_the_scripts_say_how_they_are_used(script: str) -> None:
    """--help ends well and has an example."""
    done = subprocess.run(
        [ROOT / "cluster" / script, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert f"cluster/{script}" in done.stdout


def test_a_wrong_deployment_is_told_what_is_wrong() -> None:
    """Exit code 2, before anything is sent."""
    for arguments in (["--config", "no-such.yaml"], ["--colour"], ["no-such.whl"]):
        done = subprocess.run(
            [ROOT / "cluster" / "deploy", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("cluster/deploy: ")


def test_node_commands_do_without_ray() -> None:
    """The keeper stays for as long as the node: what it imports, the node's memory pays."""
    imports = "import sys, waveflow_ray.cli.node, waveflow_ray.node.keeper"
    code = f"{imports}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert CliRunner().invoke(app, ["node", "up", "--help"]).exit_code == 0
