"""Known vulnerabilities of all that constraints.txt pins: `python -m tests.audit`.

Ends with 1 if there are any. Where the advisory database cannot be reached it says so and ends
with 0: a check that needs the network must not stop work without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def judged(report: str) -> tuple[list[str], int]:
    """Lines about what is vulnerable, and how many packages were looked up at all."""
    try:
        packages = json.loads(report)["dependencies"]
    except json.JSONDecodeError:
        return [], 0
    found = [
        f"{package['name']} {package['version']}: {known['id']}, mended in "
        f"{', '.join(known['fix_versions']) or 'no version yet'}"
        for package in packages
        for known in package.get("vulns", [])
    ]
    return found, sum("vulns" in package for package in packages)


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "-r", str(CONSTRAINTS), "--disable-pip"]
    options = ["--no-deps", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    found, looked_up = judged(done.stdout)
    if not looked_up:
        print("not audited: the advisory database cannot be reached")
        return 0
    print("\n".join(found) if found else f"{looked_up} packages without known vulnerabilities")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
