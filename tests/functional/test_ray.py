"""Joining a Ray cluster that is not there; what Ray prints by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray

from waveflow_ray.runtime import app


def test_without_a_cluster_it_is_said_how_to_get_one(no_ray: Path) -> None:
    with pytest.raises(app.ServiceError, match=r"ray start --head.*Could not find any running Ray"):
        app.join("auto")


def test_a_cluster_that_was_killed_is_not_waited_for(no_ray: Path) -> None:
    """Its address is still written down; Ray itself would try it for minutes."""
    (no_ray / "ray_current_cluster").write_text("127.0.0.1:9")
    before = time.monotonic()
    with pytest.raises(app.ServiceError, match=r":9 does not answer.*refused"):
        app.join("auto")
    assert time.monotonic() - before < app.CONNECT_TIMEOUT_S


def test_messages_of_nodes_go_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stdout they would spoil `waveflow status --json`."""
    worker = ray._private.worker
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    app.messages_to_stderr()
    message = {"lines": ["8 workers were started"], "pid": "raylet", "is_err": False}
    worker.print_to_stdstream(message, ignore_prefix=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "8 workers were started" in printed.err
