"""The lab's timings, as a table at the end of the run."""

from __future__ import annotations

import pytest

TIMES: list[tuple[str, str]] = []
"""What was done, and how long it took."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if TIMES:
        terminalreporter.section("lab")
        width = max(len(what) for what, _ in TIMES)
        for what, figure in TIMES:
            terminalreporter.write_line(f"{what:<{width}}  {figure}")
