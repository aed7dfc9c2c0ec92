"""The image and the cluster of containers: they fit the package without an engine to run them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import yaml

from waveflow_ray.audio import kernels
from waveflow_ray.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text(encoding="utf-8"))
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
WARM = """
from waveflow_ray.audio import kernels, warm

warm.warm()
for name, loop in vars(kernels).items():
    if hasattr(loop, "signatures") and not name.startswith("_"):
        print(name, len(loop.signatures))
"""
RAYS_OWN = {"RAY_USAGE_STATS_ENABLED"}


def argument(name: str) -> str:
    """The default of a build argument."""
    found = re.search(rf"^ARG {name}=(.*)$", DOCKERFILE, re.M)
    assert found, f"the Dockerfile has no ARG {name}"
    return found[1]


def is_left_out(path: str) -> bool:
    """By .dockerignore, whose last matching line decides; a folder stands for what is in it."""
    left_out = False
    for line in IGNORED:
        pattern = line.removeprefix("!").removeprefix("**/")
        if not pattern or pattern.startswith("#"):
            continue
        parts = path.split("/")
        leading = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        places = parts if line.startswith("**/") else leading
        if any(fnmatch(place, pattern) for place in places):
            left_out = not line.startswith("!")
    return left_out


def test_the_base_has_the_pinned_ray_and_the_oldest_python() -> None:
    """All nodes of a cluster need the same versions of both."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    ray = re.search(r"^ray==(.+)$", pins, re.M)
    python = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert ray
    assert python
    assert argument("BASE") == f"rayproject/ray:{ray[1]}-py3{python[1]}"


def test_every_stage_has_the_same_base() -> None:
    """A wheel made by another Python, or warm caches of another numba, would be of no use."""
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}"}


def test_what_is_copied_is_not_ignored() -> None:
    """The build finds what it asks for."""
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]
    assert "waveflow_ray" in copied
    for source in copied:
        assert (ROOT / source).exists()
        assert not is_left_out(source)
    assert not is_left_out("waveflow_ray/audio/mix.py")


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "tests/unit/test_image.py",
        "docs/operations.md",
        "demo-output/index.html",
        "waveflow_ray/audio/__pycache__/mix.pyc",
    ],
)
def test_nothing_else_gets_into_the_image(path: str) -> None:
    """No secrets, and no new layers for a change that the image does not show."""
    assert is_left_out(path)


def test_it_runs_as_nobody_important_and_without_an_entrypoint() -> None:
    """Ray gives `bash` as the command; uid 1000 is that of Ray's own images."""
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1] == "1000"
    assert not re.search(r"^ENTRYPOINT", DOCKERFILE, re.M)
    assert 'CMD ["waveflow", "run"]' in DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_compose_sets_what_is_known(name: str) -> None:
    """A setting that was renamed would be ignored in silence."""
    known = {field.upper() for field in Settings.model_fields} | CREDENTIALS | RAYS_OWN
    documented = set(re.findall(r"`(RAY_\w+)", OPERATIONS))
    assert set(SERVICES[name].get("environment", {})) <= known | documented


def test_compose_gives_the_service_what_it_requires() -> None:
    """`waveflow run` would end at once otherwise."""
    environment = SERVICES["head"]["environment"]
    needed = {n.upper() for n, field in Settings.model_fields.items() if field.is_required()}
    assert needed <= set(environment)
    assert environment["SQS_QUEUE_NAME"]


@pytest.mark.parametrize("name", SERVICES)
def test_compose_publishes_to_this_machine_only(name: str) -> None:
    """Ray's dashboard runs code for whoever reaches it."""
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_compose_asks_for_a_token() -> None:
    """Every node of the cluster does, and all know the same one."""
    nodes = [service for service in SERVICES.values() if "shm_size" in service]
    assert len(nodes) == 2
    for node in nodes:
        assert node["environment"]["RAY_AUTH_MODE"] == "token"
        assert "token:/home/ray/.ray" in node["volumes"]


def test_mixes_need_no_folder_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba's cache cannot be anywhere, inner loops are compiled in every process."""
    nowhere = "IPythonCacheLocator"  # finds no place for what stands in a file
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", nowhere)
    add = kernels.compiled(kernels.add_shifted.py_func)
    total = np.zeros(2, np.int32)
    add(total, np.array([1, -1], np.int16), 4)
    assert total.tolist() == [16, -16]


def test_every_inner_loop_is_compiled_ahead() -> None:
    """None was forgotten when it was added; the first mix would wait for it."""
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=True)
    compiled = dict(line.split() for line in done.stdout.splitlines())
    assert len(compiled) >= 6
    assert all(int(count) for count in compiled.values()), compiled
