"""Paired runs: ours and theirs in turn, so that a machine's moods meet both."""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil


@dataclass(frozen=True)
class Comparison:
    """Seconds of wall time, and their ratio run by run."""

    name: str
    peer: str
    ours_s: list[float]
    peer_s: list[float]
    target: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours_s, self.peer_s, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    def with_target(self, target: float) -> Comparison:
        return replace(self, target=target)

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"ratio": self.ratio, "ratios": self.ratios}


@dataclass(frozen=True)
class Figure:
    """One figure, with what it should be at most, or at least."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is as it should be; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True)
class Report:
    """What a part of the benchmark found.

    Attributes:
        tables: comparisons by heading.
        facts: versions, backends, and what a reader has to know.
    """

    title: str
    tables: dict[str, list[Comparison]]
    figures: list[Figure]
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return {
            "title": self.title,
            "tables": {name: [row.as_dict() for row in rows] for name, rows in self.tables.items()},
            "figures": [asdict(one) | {"met": one.met} for one in self.figures],
            "facts": self.facts,
        }

    def markdown(self) -> str:
        parts = [f"## {self.title}"]
        for name, rows in self.tables.items():
            if rows:
                parts.append(f"### {self.title}: {name}\n\n{table(rows)}")
        if self.figures:
            parts.append(figures_table(self.figures))
        if self.facts:
            parts.append("\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
        return "\n\n".join(parts)


def compare(
    name: str,
    ours: Callable[[], object],
    peer_name: str,
    peer: Callable[[], object],
    runs: int,
    target: float | None = None,
    note: str = "",
) -> Comparison:
    """Run both in turn, after one run of each that does not count."""
    pairs: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        pairs.append((seconds(ours), seconds(peer)))
    ours_s, peer_s = zip(*pairs[1:], strict=True)
    return Comparison(name, peer_name, list(ours_s), list(peer_s), target, note)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def command(*args: str) -> Callable[[], None]:
    """A call that runs a program to its end."""

    def run() -> None:
        done = subprocess.run(args, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{args[0]} failed: {done.stderr.decode()[-500:]}")

    return run


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons in Markdown."""
    lines = [
        "| what | beside | ours s | theirs s | ratio (spread) | target |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{min(row.ratios):.2f}–{max(row.ratios):.2f}"
        target = "–" if row.target is None else f"≤ {row.target:g}"
        if row.target is not None:
            target += " ✓" if row.ratio <= row.target else " ✗"
        lines.append(
            f"| {row.name} | {row.peer} | {statistics.median(row.ours_s):.3f} | "
            f"{statistics.median(row.peer_s):.3f} | {row.ratio:.2f} ({spread}) | {target} |"
        )
    return "\n".join(lines)


def figures_table(figures: Sequence[Figure]) -> str:
    """The figures in Markdown."""
    lines = ["| what | value | target |", "| --- | --- | --- |"]
    for one in figures:
        target = "–"
        if one.target is not None:
            target = f"{'≥' if one.at_least else '≤'} {one.target:g} {'✓' if one.met else '✗'}"
        lines.append(f"| {one.name} | {one.value:.3g} {one.unit} | {target} |")
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{psutil.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def version_of(*args: str) -> str:
    """The first line that a program says of itself."""
    done = subprocess.run(args, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def cpu_s() -> float:
    """CPU seconds of this process and its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
