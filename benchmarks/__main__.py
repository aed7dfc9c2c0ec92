"""`python -m benchmarks`: the project beside what could be used instead, in one run."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import audio, jobs, mix, start, storage
from benchmarks.chart import draw
from benchmarks.timing import Report, machine

PARTS: dict[str, Callable[[Path, int], Report]] = {
    "audio": audio.measure,
    "storage": storage.measure,
    "mix": mix.measure,
    "jobs": lambda _folder, runs: jobs.measure(
        list(jobs.KINDS), {"hash": 500, "analysis": 20}, runs, 60, 3000
    ),
    "start": start.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time everything beside its peers, in turn. S3 and SQS are those of "
        "AWS_ENDPOINT_URL, else moto's, which then is the limit. Peers that are not installed are "
        "left out: ffmpeg and sox are Debian packages, audiowaveform is the BBC's.",
        epilog="Examples: make bench | python -m benchmarks audio storage --runs 9 --json out.json",
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=5, help="pairs that count (5)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "wf-bench")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    parser.add_argument("--chart", type=Path, default=Path("bench.png"), help="(bench.png)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"# Benchmark\n\n{machine()}; {options.runs} pairs each\n", flush=True)
    reports: list[Report] = []
    for name in options.parts or PARTS:
        reports.append(PARTS[name](options.folder, options.runs))
        print(reports[-1].markdown() + "\n", flush=True)
        found: dict[str, Any] = {
            "machine": machine(),
            "runs": options.runs,
            "reports": [report.as_dict() for report in reports],
        }
        if options.json:
            options.json.write_text(json.dumps(found, indent=2))
    draw(reports, options.chart)
    print(f"Chart: {options.chart}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
