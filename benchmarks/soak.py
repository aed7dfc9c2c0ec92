"""Memory of every process under full load for a long time: `python -m benchmarks.soak --help`."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.service import Running, running
from benchmarks.timing import machine
from tests.support import encoded, music
from waveflow_ray.messages import HashJob, MixJob, envelope

WAITING = 20
"""Jobs that wait in the queue, so that no worker ever waits for one."""
MIX_EVERY = 40
FLAT_MB = 10.0
FLAT_SHARE = 1.1
"""Flat is what ends less than a tenth and 10 MB above where it was after a quarter of the time."""
TITLES = {
    "ray::IngressActor": "ingress",
    "ray::ReporterActor": "reporters",
    "ray::/": "reporters",
    "ray::DashboardAgent": "dashboard agent",
    "ray::RuntimeEnvAgent": "runtime env agent",
    "ray::": "workers, the largest",
    "raylet": "raylet",
    "gcs_server": "gcs",
    "dashboard.py": "dashboard",
    "log_monitor": "log monitor",
}


def sample(found: Running) -> dict[str, float]:
    """MB of anonymous memory (what a leak grows in) of each kind of process; objects in the store.

    Of several processes of a kind, the largest.
    """
    sizes: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (OSError, psutil.Error):
            continue
        kind = next((kind for part, kind in TITLES.items() if part in title), None)
        if kind is not None and "RssAnon" in status:
            anonymous = int(status.split("RssAnon:")[1].split()[0]) / 1024
            sizes[kind] = max(sizes[kind], anonymous)
    return dict(sizes) | {"object store": found.object_store_bytes() / 2**20}


@contextmanager
def load(found: Running) -> Iterator[None]:
    """Keeps the queue filled: hash jobs, of which the server makes analyses; and mixes."""
    sounds = {
        "a.wav": encoded(music(20.0)),
        "b.flac": encoded(music(20.0, seed=1), format="FLAC"),
        "c.mp3": encoded(music(20.0, seed=2), format="MP3"),
        "d.ogg": encoded(music(20.0, seed=3), format="OGG"),
        "broken.wav": b"no sound at all " * 50,
    }
    keys = [f"soak/{name}" for name in sounds]
    for key, content in zip(keys, sounds.values(), strict=True):
        found.bucket.put(key, content, "audio/wav")
    stop = threading.Event()

    def feed() -> None:
        for number in itertools.count():
            while found.queue.facts().visible >= WAITING:
                if stop.wait(0.05):
                    return
            if number % MIX_EVERY == 0:
                body = envelope(MixJob, f"m{number}", stageId=f"{number}", stem_paths=keys[:4])
            else:
                key = keys[number % len(keys)]
                body = envelope(HashJob, f"h{number}", stemId=f"s{number}", filepath=key)
            found.queue.send(body)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def backlog(found: Running, count: int) -> None:
    """Queue so many hash jobs of a small file."""
    found.bucket.put("soak/small.wav", encoded(music(0.1)), "audio/wav")
    bodies = (
        envelope(HashJob, f"b{number}", stemId=f"b{number}", filepath="soak/small.wav")
        for number in range(count)
    )
    while batch := list(itertools.islice(bodies, 10)):
        found.queue.client.send_message_batch(
            QueueUrl=found.queue.url,
            Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(batch)],
        )


def judged(samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """For each kind of process: MB after a quarter of the time, at the end, at most; if flat."""
    quarter = max(1, len(samples) // 4)
    rows = {}
    for kind in sorted({kind for taken in samples for kind in taken}):
        series = [taken.get(kind, 0.0) for taken in samples]
        before = statistics.median(series[quarter : 2 * quarter] or series)
        after = statistics.median(series[-quarter:])
        rows[kind] = {
            "after_a_quarter_mb": round(before, 1),
            "at_the_end_mb": round(after, 1),
            "at_most_mb": round(max(series), 1),
            "flat": after <= before * FLAT_SHARE or after <= before + FLAT_MB,
        }
    return rows


def draw(times: list[float], samples: list[dict[str, float]], path: Path) -> None:
    """A line for each kind of process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
    for kind in sorted({kind for taken in samples for kind in taken}):
        minutes = [moment / 60 for moment in times]
        axes.plot(minutes, [taken.get(kind, 0.0) for taken in samples], label=kind, linewidth=1.2)
    axes.set(xlabel="minutes at full load", ylabel="MB (anonymous memory)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Keep the service busy and watch what its processes hold. S3 and SQS are those "
        "of AWS_ENDPOINT_URL if it is set, else moto's.",
        epilog="Examples: make soak | python -m benchmarks.soak --minutes 5 --backlog 100000",
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples (5)")
    parser.add_argument("--backlog", type=int, default=0, help="hash jobs queued beforehand")
    parser.add_argument("--plot", type=Path, default=Path("soak.png"), help="soak.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times: list[float] = []
    samples: list[dict[str, float]] = []
    with running(num_cpus=psutil.cpu_count() or 1) as found:
        backlog(found, options.backlog)
        with load(found):
            started = time.monotonic()
            while (passed := time.monotonic() - started) < options.minutes * 60:
                times.append(passed)
                samples.append(sample(found))
                if not options.json and len(samples) % 12 == 1:
                    done = len(found.server.received)
                    print(f"{passed / 60:5.1f} min  {done} webhooks", file=sys.stderr)
                time.sleep(options.every)
        webhooks = len(found.server.received)
        waiting = found.queue.facts().visible
    draw(times, samples, options.plot)
    rows = judged(samples)
    if options.json:
        print(json.dumps({"webhooks": webhooks, "waiting": waiting, "processes": rows}, indent=2))
    else:
        print(f"{machine()}; {options.minutes:g} min, {webhooks} webhooks, {waiting} jobs wait\n")
        print("| process | MB after ¼ | at the end | at most | flat |")
        print("| --- | --- | --- | --- | --- |")
        for kind, row in rows.items():
            first, last, most, flat = row.values()
            print(f"| {kind} | {first:.0f} | {last:.0f} | {most:.0f} | {'✓' if flat else '✗'} |")
        print(f"\n{options.plot}")
    return 0 if all(row["flat"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
