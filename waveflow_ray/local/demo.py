"""`waveflow demo`: a song goes through the whole service, and what comes back is checked.

The checks are computed here a second time, with plain numpy on whole files.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from waveflow_ray.aws.s3 import Bucket, bucket_of
from waveflow_ray.local.page import DemoReport, TrackView, write_page
from waveflow_ray.local.song import make_song
from waveflow_ray.local.stack import Stack, local_stack
from waveflow_ray.local.verify import mix_difference, peaks_difference, sha256_of
from waveflow_ray.messages import HashJob, envelope
from waveflow_ray.runtime import app

TIMEOUT_S = 180.0
TOLERANCE = 1e-4
STAGE_ID = "5f0c1c1e-6f7d-4b0e-9d5e-2b8a4c0d1e2f"
ENDED = ("analysed", "deleted", "failed")


@dataclass
class Upload:
    """A file that the musician uploads, and what became of it."""

    name: str
    path: Path
    key: str
    encoding: str
    lossless: bool = False
    stem_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    hash_check: dict[str, Any] = field(default_factory=dict)
    completion: dict[str, Any] = field(default_factory=dict)
    waveform: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> dict[str, Any]:
        failed = self.completion.get("status") == "FAILURE"
        return self.completion["result"] if failed else {}


@dataclass(frozen=True)
class Song:
    """The uploads: stems of the song, a copy of one, and a text file that calls itself audio."""

    stems: list[Upload]
    copy: Upload
    text: Upload

    @property
    def uploads(self) -> list[Upload]:
        return [*self.stems, self.copy, self.text]


def run_demo(
    output: Path, seconds: float, *, keep: bool, num_cpus: int | None, as_json: bool
) -> bool:
    """Run it; True if every expectation held."""
    console = Console(stderr=as_json)
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    console.print("Making a song, starting S3, SQS, a main server and Ray …")
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make_uploads, output / "stems", seconds)
        with local_stack(
            journal=output / "webhooks.jsonl", num_cpus=num_cpus, log_format="json"
        ) as stack:
            song = making.result()
            console.print(app.dashboard_line(stack.dashboard), soft_wrap=True)
            sent = time.monotonic()
            logs = LogReader(stack)
            with progress(console, stack, song) as refresh:
                send(stack, song, refresh, logs)
            elapsed_s = time.monotonic() - sent
            mix = collect(stack, song, logs, output)
            checks = verify(stack, song, mix, output)
            page = output / "index.html"
            write_page(page, page_report(song, mix, checks, output, elapsed_s, logs))
            show(console, song, mix, checks, logs)
            held = all(ok for _, ok in checks)
            console.print(
                f"Service: {elapsed_s:.1f} s for {len(song.uploads)} files and the mix. "
                f"All: {time.monotonic() - started:.1f} s."
            )
            console.print(f"Page: [bold]{page}[/bold]", soft_wrap=True)
            if as_json:
                print(json.dumps(summary(song, mix, checks, page, elapsed_s)))
            if keep:
                console.print("Still running; Ctrl-C ends it.")
                console.print(app.dashboard_line(stack.dashboard), soft_wrap=True)
                app.run_until_signal(stack.service, stack.settings, lambda _line: None)
            else:
                app.stop(stack.service, stack.settings, stack.settings.drain_timeout_s)
    return held


def make_uploads(folder: Path, seconds: float) -> Song:
    """Write the song's files, the copy and the text file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stems = [
        Upload(
            stem.name,
            stem.path,
            f"songs/demo/{stem.path.name}",
            f"{stem.encoding}, {stem.sample_rate / 1000:g} kHz, "
            + ("mono" if stem.channels == 1 else "stereo"),
            lossless=stem.path.suffix in (".wav", ".flac"),
        )
        for stem in make_song(folder, seconds)
    ]
    first = stems[0]
    copy = folder / f"{first.name}-again{first.path.suffix}"
    shutil.copyfile(first.path, copy)
    text = folder / "lyrics.wav"
    text.write_text("These are the lyrics and not a sound\n" * 100)
    return Song(
        stems,
        Upload(f"{first.name} again", copy, f"songs/demo/{copy.name}", first.encoding),
        Upload("lyrics", text, f"songs/demo/{text.name}", "text named .wav"),
    )


class LogReader:
    """Collects the service's log lines: seconds by kind and stage for every stem and the mix."""

    def __init__(self, stack: Stack) -> None:
        self._ingress = stack.service.ingress
        self._next = 0
        self.seconds: dict[str, dict[str, float]] = defaultdict(dict)
        self.jobs = 0

    def read(self) -> None:
        ask = self._ingress.log_lines.options(enable_task_events=False)
        self._next, lines = ray.get(ask.remote(self._next))
        for line in lines:
            entry = json.loads(line)
            subject = entry.get("stemId") or entry.get("stageId")
            if entry["event"] == "job" and subject:
                self.jobs += 1
                for stage, spent in entry["seconds"].items():
                    self.seconds[subject][f"{entry['kind']} {stage}"] = spent


def send(stack: Stack, song: Song, refresh: Any, logs: LogReader) -> None:
    """Upload and queue as the main server does; wait until the mix is reported."""
    bucket = bucket_of(stack.settings)
    for upload in song.uploads:
        bucket.client.upload_file(str(upload.path), bucket.name, upload.key)
        stack.server.register(upload.stem_id, STAGE_ID, upload.key)
    for upload in [*song.stems, song.text]:
        stack.queue.send(hash_message(upload))
    copy_sent = False
    deadline = time.monotonic() + TIMEOUT_S
    while stack.server.mix_report() is None and time.monotonic() < deadline:
        # The copy comes later, so that it is the copy that is found to be one.
        if not copy_sent and stack.server.states()[song.stems[0].stem_id] != "uploaded":
            stack.queue.send(hash_message(song.copy))
            copy_sent = True
        logs.read()
        refresh()
        time.sleep(0.1)
    refresh()


def hash_message(upload: Upload) -> str:
    """The first job of every stem, in the envelope shape of the production server."""
    now_ms = time.time_ns() // 1_000_000
    return envelope(
        HashJob,
        f"hash-{upload.stem_id}-{now_ms}",
        userId="demo-user",
        trackId="demo-track",
        stemId=upload.stem_id,
        stageId=STAGE_ID,
        filepath=upload.key,
        timestamp=str(now_ms),
        original_filename=upload.path.name,
    )


@contextmanager
def progress(console: Console, stack: Stack, song: Song) -> Iterator[Any]:
    """A live table of the stems' states; the value is called to redraw it."""

    def table() -> Table:
        states = stack.server.states()
        grid = Table.grid(padding=(0, 2))
        for upload in song.uploads:
            state = states.get(upload.stem_id, "uploading")
            style = {"failed": "red", "deleted": "yellow", "analysed": "green"}.get(state, "dim")
            grid.add_row(upload.name, upload.encoding, f"[{style}]{state}[/{style}]")
        ended = all(states.get(upload.stem_id) in ENDED for upload in song.uploads)
        done = stack.server.mix_report() is not None
        grid.add_row("[bold]mix[/bold]", "", "done" if done else "mixing …" if ended else "waits")
        return grid

    with Live(table(), console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(table(), refresh=True)


def collect(stack: Stack, song: Song, logs: LogReader, output: Path) -> dict[str, Any]:
    """Bring webhooks, waveforms and the mix together; returns the mix's report and waveform."""
    bucket = bucket_of(stack.settings)
    by_stem: dict[tuple[str, str], dict[str, Any]] = {
        (received.path, received.payload.get("stemId", "")): received.payload
        for received in list(stack.server.received)
    }
    deadline = time.monotonic() + 5.0
    while logs.jobs < 2 * len(song.uploads) + 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # a job's line is written just after its webhook was answered
        logs.read()
    for upload in song.uploads:
        upload.hash_check = by_stem.get(("/hash-check", upload.stem_id), {})
        upload.completion = by_stem.get(("/completion", upload.stem_id), {})
        upload.seconds = logs.seconds[upload.stem_id]
        if upload.completion.get("audio_wave_path"):
            upload.waveform = _read_json(bucket, upload.completion["audio_wave_path"])
    report = stack.server.mix_report() or {}
    if report.get("status") != "SUCCESS":
        return {"report": report, "waveform": {}}
    bucket.client.download_file(bucket.name, report["mixed_file_path"], str(output / "mix.wav"))
    return {"report": report, "waveform": _read_json(bucket, report["waveform_data_path"])}


def verify(stack: Stack, song: Song, mix: dict[str, Any], output: Path) -> list[tuple[str, bool]]:
    """Every expectation, and whether it held."""
    bucket = bucket_of(stack.settings)
    report = mix["report"]
    mixed = report.get("status") == "SUCCESS"
    return [
        (
            f"{len(song.uploads)} hashes are right",
            all(u.hash_check.get("audio_hash") == sha256_of(u.path) for u in song.uploads),
        ),
        (
            f"{len(song.stems)} stems were analysed",
            all(u.completion.get("status") == "SUCCESS" and u.waveform for u in song.stems),
        ),
        (
            "the waveforms of lossless stems are right",
            all(
                peaks_difference(u.path, u.waveform.get("peaks", [])) <= TOLERANCE
                for u in song.stems
                if u.lossless
            ),
        ),
        ("the copy was deleted", not bucket.exists(song.copy.key)),
        ("its twin was kept", bucket.exists(song.stems[0].key)),
        (
            "the text file was reported as FAILURE",
            song.text.error.get("error_code") == "unsupported_media_type",
        ),
        ("the mix has every stem", report.get("stem_count") == len(song.stems)),
        (
            "the mix sounds right",
            mixed and mix_difference([u.path for u in song.stems], output / "mix.wav") <= TOLERANCE,
        ),
        (
            "each event was reported once",
            len({r.webhook_id for r in stack.server.received})
            == len(stack.server.received)
            == 2 * len(song.uploads) + 1,
        ),
    ]


def page_report(
    song: Song,
    mix: dict[str, Any],
    checks: list[tuple[str, bool]],
    output: Path,
    elapsed_s: float,
    logs: LogReader,
) -> DemoReport:
    """What the HTML page shows."""
    waveform = mix["waveform"]
    mixed = bool(waveform)
    return DemoReport(
        title="WaveFlow demo",
        subtitle=f"{len(song.stems)} stems, a copy and a text file, through S3, SQS, Ray and "
        "webhooks",
        mix=TrackView(
            name="Mix",
            encoding=f"WAV 16-bit, {waveform.get('sample_rate', 0) / 1000:g} kHz",
            audio=output / "mix.wav" if mixed else None,
            outcome="mixed" if mixed else "failed",
            note="" if mixed else mix["report"].get("result", {}).get("error", "no report came"),
            sha256=None,
            duration_s=waveform.get("duration"),
            peaks=waveform.get("peaks"),
            stages_s=logs.seconds[STAGE_ID],
        ),
        tracks=[_track(song, upload) for upload in song.uploads],
        elapsed_s=elapsed_s,
        checks=checks,
    )


def _track(song: Song, upload: Upload) -> TrackView:
    is_copy = upload is song.copy and not upload.error
    outcome = "failed" if upload.error else "duplicate" if is_copy else "analysed"
    copy_note = f"Exact copy of {song.stems[0].name}: deleted"
    return TrackView(
        name=upload.name,
        encoding=upload.encoding,
        audio=upload.path if upload.waveform else None,
        outcome=outcome,
        note=upload.error.get("error", copy_note if is_copy else ""),
        sha256=upload.hash_check.get("audio_hash"),
        duration_s=upload.waveform.get("duration"),
        peaks=upload.waveform.get("peaks"),
        stages_s=upload.seconds,
    )


def show(
    console: Console,
    song: Song,
    mix: dict[str, Any],
    checks: list[tuple[str, bool]],
    logs: LogReader,
) -> None:
    """The table by stem, and the expectations."""
    stages = ("queue", "download", "work", "upload", "webhook")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("stem", "hash", "outcome", "s", "waveform"):
        table.add_column(column, no_wrap=True, justify="right" if column == "s" else "left")
    for stage in ("queue", "load", "work", "store", "hook"):
        table.add_column(f"{stage}\nms", no_wrap=True, min_width=5, justify="right")
    for upload in song.uploads:
        view = _track(song, upload)
        table.add_row(
            upload.name,
            (view.sha256 or "")[:8],
            view.outcome,
            f"{view.duration_s:.1f}" if view.duration_s else "",
            _spark(upload.waveform.get("peaks", [])),
            *_milliseconds(upload.seconds, stages),
        )
    waveform = mix["waveform"]
    table.add_row(
        "mix",
        "",
        "mixed" if waveform else "failed",
        f"{waveform['duration']:.1f}" if waveform else "",
        _spark(waveform.get("peaks", [])),
        *_milliseconds(logs.seconds[STAGE_ID], stages),
    )
    console.print(table)
    for upload in song.uploads:
        if upload.error:
            console.print(f"{upload.name}: {upload.error['error']}")
    for expectation, held in checks:
        console.print(f"[green]✓[/green] {expectation}" if held else f"[red]✗ {expectation}[/red]")


def summary(
    song: Song, mix: dict[str, Any], checks: list[tuple[str, bool]], page: Path, elapsed_s: float
) -> dict[str, Any]:
    """The result for scripts."""
    return {
        "ok": all(held for _, held in checks),
        "checks": {expectation: held for expectation, held in checks},
        "page": str(page),
        "service_s": round(elapsed_s, 2),
        "mix": mix["report"],
        "stems": [
            {"name": u.name, "key": u.key, "completion": u.completion, "seconds": u.seconds}
            for u in song.uploads
        ],
    }


def _milliseconds(seconds: dict[str, float], stages: tuple[str, ...]) -> Iterator[str]:
    """Per stage, of all jobs of the stem together."""
    for stage in stages:
        spent = [s for name, s in seconds.items() if name.endswith(stage)]
        yield f"{sum(spent) * 1000:.0f}" if spent else ""


def _spark(peaks: list[float], width: int = 10) -> str:
    step = len(peaks) / width
    columns = [peaks[int(i * step) : int((i + 1) * step)] for i in range(width)] if peaks else []
    return "".join(" ▁▂▃▄▅▆▇█"[round(max(column) * 8)] for column in columns)


def _read_json(bucket: Bucket, key: str) -> dict[str, Any]:
    body = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    document: dict[str, Any] = json.loads(body)
    return document
