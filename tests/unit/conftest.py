"""What every unit test lives by: no Ray, nobody but this machine, nothing from the shell."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, NoReturn

import hypothesis
import pytest

from waveflow_ray.settings import Settings

# The same examples in every run, and no verdict that depends on how busy the machine is.
hypothesis.settings.register_profile(
    "unit",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("unit")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbids ray.init and connections to other machines; hides the shell's settings."""

    def no_ray(*_: object, **__: object) -> NoReturn:
        raise AssertionError("unit tests do without Ray")

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            assert host.startswith("127.") or host in ("::1", "localhost"), f"network: {address}"
        plain_connect(self, address)

    plain_connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", connect)
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", no_ray)
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)
