"""AWS for the lab: moto's server, which can be told that there is no spot capacity.

Objects with `SLOW` in their keys are read slowly: jobs that take time and no CPU are what brings
nodes to a machine that has few CPUs of its own.

Runs inside the lab: `python -m tests.lab.account`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceBackend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import main

PORT = 5999
SLOW = "slow-"
SLOW_S = 2.0


def refuse_spot(lab: Path) -> None:
    """While the file `no-spot` is in the lab's folder, no spot instance is launched."""
    launch = InstanceBackend.run_instances

    def run_instances(self: InstanceBackend, *arguments: Any, **options: Any) -> Any:
        if options.get("instance_market_options") and (lab / "no-spot").exists():
            raise EC2ClientError(
                "InsufficientInstanceCapacity",
                "There is no Spot capacity available that matches your request.",
            )
        return launch(self, *arguments, **options)

    InstanceBackend.run_instances = run_instances


def read_slowly() -> None:
    """Each GET of a slow object takes `SLOW_S`."""
    answer = DomainDispatcherApplication.__call__

    def call(
        self: DomainDispatcherApplication, environ: dict[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET" and SLOW in environ["PATH_INFO"]:
            time.sleep(SLOW_S)
        return answer(self, environ, start)

    DomainDispatcherApplication.__call__ = call


if __name__ == "__main__":
    refuse_spot(Path(os.environ["LAB"]))
    read_slowly()
    main(["-H", os.environ["GATEWAY"], "-p", str(PORT)])
