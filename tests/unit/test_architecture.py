"""The shape of the package: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import waveflow_ray

PACKAGE = Path(waveflow_ray.__file__).parent
LAYERS = (
    {"", "audio", "messages", "errors", "settings", "logs", "metrics", "outcomes", "release"},
    {"aws", "webhooks"},
    {"posting"},
    {"jobs"},
    {"runtime"},
    {"local", "doctor", "node"},
    {"cli"},
    {"__main__"},
)
"""Lowest first; "" is the package itself. Whoever stands higher may import what stands lower."""

WITHOUT_RAY = (
    "metrics",
    "node",
    "node.keeper",
    "node.releases",
    "node.sessions",
    "node.spot",
    "runtime.batches",
    "runtime.courier",
    "runtime.demand",
    "runtime.environment",
    "runtime.ingress",
    "runtime.leases",
    "runtime.light",
    "runtime.lightwork",
    "runtime.outbox",
    "runtime.slots",
    "runtime.subjects",
    "runtime.watch",
)
"""The logic of the runtime is plain code, bound to Ray by others; a node's keeper stays small."""

WITH_ENVIRONMENT = {
    "settings": "reads it, for all",
    "cli.node": "sets where Python finds a release",
    "node.keeper": "sets what Ray reads",
    "runtime.app": "sets what Ray reads",
    "local.aws": "sets what boto3 reads",
    "audio.media": "undoes what a library sets",
}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below `waveflow_ray`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in a module: inside functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {module: frozenset(imports(tree)) for module, tree in MODULES.items()}


def own_module(name: str) -> str | None:
    """The module of this package that an imported name is, or is in."""
    if name != "waveflow_ray" and not name.startswith("waveflow_ray."):
        return None
    name = name.removeprefix("waveflow_ray").removeprefix(".")
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module.partition(".")[0] in names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """A module knows its own package and the layers below, never one beside or above it."""
    here = module.partition(".")[0]
    for name in IMPORTS[module]:
        other = own_module(name)
        if other is None or other.partition(".")[0] == here:
            continue
        ground = layer(other) == layer(module) == 0
        assert layer(other) < layer(module) or ground, f"{module} imports {other}"


def test_no_module_needs_itself() -> None:
    """There are no circles, not even hidden ones inside functions."""
    graph = {
        module: {own_module(name) for name in names} - {None, module}
        for module, names in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("audio")])
def test_audio_is_pure(module: str) -> None:
    """Audio is arrays and files: it knows nothing of jobs, messages, settings or the network."""
    for name in IMPORTS[module]:
        other = own_module(name)
        assert other in (None, "", "errors") or other.startswith("audio"), name
        assert name.partition(".")[0] not in ("aiohttp", "requests", "socket", "urllib"), name


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("boto3", ("aws.", "doctor.")),
        ("botocore", ("aws.", "doctor.")),
        ("ray", ("runtime.", "local.", "doctor.", "cli.")),
        ("aiohttp", ("posting", "local.")),
    ],
)
def test_each_library_has_its_place(library: str, homes: tuple[str, ...]) -> None:
    """What a library can do, and how it fails, is known in one place only."""
    users = {
        module
        for module, names in IMPORTS.items()
        if any(name.partition(".")[0] == library for name in names)
    }
    assert users, f"nobody uses {library}: this test looks for the wrong thing"
    assert {user for user in users if not user.startswith(homes)} == set()


@pytest.mark.parametrize("module", WITHOUT_RAY)
def test_the_logic_of_the_runtime_needs_no_ray(module: str) -> None:
    """It runs in unit tests without Ray, so neither it nor what it imports may need Ray."""
    seen: set[str] = set()
    to_do = [module]
    while to_do:
        name = to_do.pop()
        seen.add(name)
        names = IMPORTS[name]
        assert not any(other.partition(".")[0] == "ray" for other in names), name
        to_do += {own for other in names if (own := own_module(other)) is not None} - seen


def test_only_the_settings_read_the_environment() -> None:
    """Every node of a cluster works by the same values, because they come from one place."""
    users = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    users |= {m for m, names in IMPORTS.items() if names & {"os.environ", "os.getenv"}}
    assert users <= WITH_ENVIRONMENT.keys()


def test_the_public_names_are_these() -> None:
    """What the package promises to keep is short, and all of it is there."""
    assert waveflow_ray.__all__ == ["ConfigurationError", "ErrorCode", "JobError", "__version__"]
    assert sorted(waveflow_ray.__all__) == waveflow_ray.__all__
    exported = {
        name
        for name, value in vars(waveflow_ray).items()
        if getattr(value, "__module__", "").startswith("waveflow_ray.")
    }
    assert exported | {"__version__"} == set(waveflow_ray.__all__)


@pytest.mark.parametrize("module", ["waveflow_ray", "waveflow_ray.cli"])
def test_importing_it_is_cheap(module: str) -> None:
    """`waveflow --help` answers at once: heavy libraries wait until they are needed."""
    heavy = (
        "('ray', 'boto3', 'botocore', 'numpy', 'librosa', 'soundfile', 'soxr', 'aiohttp', "
        "'pydantic', 'asyncio')"
    )
    program = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("waveflow_ray.runtime.tasks", "('numba', 'soxr', 'librosa', 'aiohttp')"),
        ("waveflow_ray.runtime.light", "('numba', 'soxr', 'librosa', 'aiohttp')"),
        ("waveflow_ray.runtime.actors", "('numpy', 'soundfile', 'aiohttp', 'ray.autoscaler.sdk')"),
        ("waveflow_ray.runtime.app", "('numba', 'soxr', 'librosa', 'aiohttp', 'boto3', 'numpy')"),
    ],
)
def test_workers_actors_and_short_commands_import_little(module: str, libraries: str) -> None:
    """What only mixes or the actors need is not waited for by others."""
    program = f"import sys, {module}; print([m for m in {libraries} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
