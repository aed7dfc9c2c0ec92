"""Mixes beside ffmpeg and sox: `python -m benchmarks.mix --help`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import soundfile

from benchmarks import inputs
from benchmarks.service import MemoryWatch, Running, running
from benchmarks.timing import Comparison, Report, command, compare, version_of
from waveflow_ray.audio.mix import mix_files
from waveflow_ray.audio.spec import MixSpec

STEMS = 8
SECONDS = 240


def amix(paths: list[Path], out: Path) -> Callable[[], None]:
    """ffmpeg's way: the average, as 16-bit WAV."""
    files = [arg for path in paths for arg in ("-i", str(path))]
    graph = f"amix=inputs={len(paths)}:duration=longest"
    return command(
        "ffmpeg",
        "-v",
        "error",
        "-y",
        *files,
        "-filter_complex",
        graph,
        "-c:a",
        "pcm_s16le",
        str(out),
    )


def sox(paths: list[Path], out: Path) -> Callable[[], None]:
    """sox's way: the sum, normalised."""
    files = [str(path) for path in paths]
    return command("sox", "-m", *files, "-b", "16", str(out), "gain", "-n", "-0.45")


def measure(
    folder: Path, runs: int, wanted: Sequence[str] = ("core", "service", "compressed", "many")
) -> Report:
    """Mixes of local files, through the service, and what large ones hold."""
    tables: dict[str, list[Comparison]] = {}
    facts: dict[str, Any] = {
        "ffmpeg": version_of("ffmpeg", "-version"),
        "sox": version_of("sox", "--version"),
        "libsndfile": soundfile.__libsndfile_version__,
    }
    if "core" in wanted:
        tables["in a warm process"] = core(folder, runs)
    if set(wanted) - {"core"}:
        with running(num_cpus=2, max_file_size_mb=4096, job_timeout_s=3000) as service:
            facts["S3 and SQS"] = service.backend
            rows = tables["through the service"] = []
            if "service" in wanted:
                rows += whole(service, folder, runs, facts)
            if "compressed" in wanted:
                rows += compressed(service, folder, runs)
            if "many" in wanted:
                facts["64 stems of 4 min"] = heavy(service, folder, 64, SECONDS)
            if "large" in wanted:
                facts["16 stems of 60 min"] = heavy(service, folder, 16, 3600)
    return Report("Mixes", tables, [], facts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Time mixes beside ffmpeg and sox. S3 and SQS are those of AWS_ENDPOINT_URL "
        "if it is set, else moto's, which is slow enough to be the limit.",
        epilog="Examples: make bench-mix | python -m benchmarks.mix --only large --json",
    )
    parser.add_argument("--runs", type=int, default=5, help="pairs that count (5)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "wf-bench")
    parser.add_argument("--only", choices=["core", "service", "compressed", "many", "large"])
    parser.add_argument("--large", action="store_true", help="also 16 stems of 60 min: 10 GB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    missing = [name for name in ("ffmpeg", "sox") if shutil.which(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)} (Debian: apt install ffmpeg sox)")
        return 2
    wanted = [options.only] if options.only else ["core", "service", "compressed", "many"]
    if options.large:
        wanted.append("large")
    options.folder.mkdir(parents=True, exist_ok=True)
    found = measure(options.folder, options.runs, wanted)
    print(json.dumps(found.as_dict(), indent=2) if options.json else found.markdown())
    return 0


def core(folder: Path, runs: int) -> list[Comparison]:
    """The numeric core on local files, in one process that has mixed before."""
    out = folder / "out.wav"
    rows = []
    for encoding, target in (("PCM_16", 1.0), ("PCM_24", None)):
        paths = inputs.stems(folder, STEMS, SECONDS, "wav", encoding)
        spec = MixSpec.model_validate({"stems": [{"path": str(path)} for path in paths]})
        rows.append(
            compare(
                f"core, {STEMS} x {SECONDS} s WAV {encoding}, one process, warm",
                lambda spec=spec: mix_files(spec, out),
                "ffmpeg amix",
                amix(paths, out),
                runs,
                target,
            )
        )
    return rows


def whole(service: Running, folder: Path, runs: int, facts: dict[str, Any]) -> list[Comparison]:
    """From the message in SQS to the webhook, S3 to S3, with a service that has mixed before."""
    paths = inputs.stems(folder, STEMS, SECONDS, "wav", "PCM_16")
    keys = service.upload(paths)
    out = folder / "out.wav"
    name = f"service, {STEMS} x {SECONDS} s WAV, message to webhook"
    rows = [
        compare(name, lambda: mixed(service, keys), "ffmpeg amix", amix(paths, out), runs, 1.0),
        compare(name, lambda: mixed(service, keys), "sox -m", sox(paths, out), runs, 0.55),
    ]
    report = mixed(service, keys)
    log = service.log_of(report["stageId"])
    size = sum(path.stat().st_size for path in paths)
    facts["S3 bytes read of WAV stems"] = f"{log['bytes_in'] / size:.3f} of their size"
    facts["seconds by stage"] = log["seconds"]
    return rows


def compressed(service: Running, folder: Path, runs: int) -> list[Comparison]:
    """Stems that have to be decoded from their start."""
    rows = []
    for container in ("mp3", "flac"):
        paths = inputs.stems(folder, STEMS, SECONDS, container)
        keys = service.upload(paths)
        rows.append(
            compare(
                f"service, {STEMS} x {SECONDS} s {container.upper()}",
                lambda keys=keys: mixed(service, keys),
                "ffmpeg amix",
                amix(paths, folder / "out.wav"),
                runs,
                0.75,
            )
        )
    return rows


def heavy(service: Running, folder: Path, count: int, seconds: int) -> dict[str, Any]:
    """Peak memory of every process, and of the object store, during one large mix."""
    keys = service.upload(inputs.stems(folder, count, seconds, "wav", "PCM_16"))
    # Idle is a worker that has mixed before: what it imports is not what a mix holds.
    for _ in range(3):
        mixed(service, service.upload(inputs.stems(folder, STEMS, SECONDS, "wav", "PCM_16")))
    idle = MemoryWatch(service)
    idle.sample()
    with MemoryWatch(service) as watch:
        report = mixed(service, keys)
    workers = [pid for pid, name in watch.names.items() if name.startswith("ray::")]
    idle_mb = max((idle.peak_mb.get(pid, 0.0) for pid in workers), default=0.0)
    # A worker that was started meanwhile: above the others while they were idle.
    above = {pid: peak - idle.peak_mb.get(pid, idle_mb) for pid, peak in watch.peak_mb.items()}
    largest = max(above, key=lambda pid: above[pid])
    log = service.log_of(report["stageId"])
    return {
        "seconds": round(sum(log["seconds"].values()), 1),
        "peak MB of a worker": round(max(watch.peak_mb[pid] for pid in workers)),
        "idle MB of a worker": round(idle_mb),
        "MB above idle of any process": round(above[largest]),
        "which is": watch.names[largest],
        "peak MB of the object store": round(watch.object_store_mb),
        "S3 bytes read, of the stems' size": round(
            log["bytes_in"] / (count * (seconds * inputs.RATE * 4 + 44)), 3
        ),
    }


def mixed(service: Running, keys: list[str]) -> dict[str, Any]:
    report = service.mix(keys)
    if report["status"] != "SUCCESS":
        raise RuntimeError(f"the mix failed: {report['result']}")
    return report


if __name__ == "__main__":
    sys.exit(main())
