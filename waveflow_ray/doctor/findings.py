"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and where it is not well, what to do."""

    group: str
    name: str
    state: State
    found: str
    mend: str = ""


class Group:
    """Makes findings of one group."""

    def __init__(self, name: str) -> None:
        self.ok = partial(_finding, name, "ok")
        self.warn = partial(_finding, name, "warn")
        self.fail = partial(_finding, name, "fail")
        self.name = name

    def judge(self, name: str, good: bool, found: str, mend: str) -> Finding:
        """ok or warn."""
        return self.ok(name, found) if good else self.warn(name, found, mend)


def _finding(group: str, state: State, name: str, found: str, mend: str = "") -> Finding:
    return Finding(group, name, state, found, mend)
