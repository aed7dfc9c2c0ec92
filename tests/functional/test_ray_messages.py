"""What Ray prints by itself."""

from __future__ import annotations

import pytest
import ray

from waveflow_ray.runtime import app


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
