"""The lab by hand: `python -m tests.lab` opens a shell of the operator; leaving it ends the lab."""

from __future__ import annotations

import sys

from tests.lab.cluster import deploy, open_lab, project_config, write
from tests.lab.lab import GATEWAY, why_not
from tests.support import receiver


def main() -> int:
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    config = project_config()
    lab = open_lab(config)
    with lab, receiver(host=GATEWAY) as main_server:
        account = deploy(lab)
        path = write(lab, config, account.settings | {"WEBHOOK_URL": main_server.url})
        print(f"ray up --no-config-cache -y {path}")
        for name, value in account.settings.items():
            print(f"export {name}={value}")
        lab.shell()
        print(f"{len(main_server.received)} webhooks came")
    return 0


if __name__ == "__main__":
    sys.exit(main())
