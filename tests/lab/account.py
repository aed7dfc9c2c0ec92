"""AWS for the lab: moto's server, which can be told that there is no spot capacity.

Runs inside the lab: `python -m tests.lab.account`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceBackend
from moto.server import main

PORT = 5999


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


if __name__ == "__main__":
    refuse_spot(Path(os.environ["LAB"]))
    main(["-H", os.environ["GATEWAY"], "-p", str(PORT)])
