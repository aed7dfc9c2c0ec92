"""The result of the demo as one HTML file: waveforms drawn from the peaks, audio to listen to.

The file needs nothing but itself: the audio is in it as MP3, so it opens from ``file://``, can be
sent to someone, and asks no server for anything.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import soundfile as sf

TEMPLATE = Path(__file__).with_name("page.html")
BLOCK_FRAMES = 65536
MP3_MAX_RATE_HZ = 48_000
# LAME's variable bit rate is the fastest of its modes; 0 is the best quality, 1 the smallest file.
MP3_COMPRESSION = 0.7
MIX_HUE, FIRST_HUE, HUE_STEP = 264, 20, 47

BADGES = {
    "analysed": "analysed",
    "duplicate": "duplicate deleted",
    "failed": "failed",
    "mixed": "mixed",
}
PLAY_ICONS = (
    '<svg class="start" viewBox="0 0 24 24" aria-hidden="true">'
    '<path d="M8 4.6v14.8a1 1 0 0 0 1.5.8l11.8-7.4a1 1 0 0 0 0-1.6L9.5 3.8A1 1 0 0 0 8 4.6z"/>'
    '</svg><svg class="pause" viewBox="0 0 24 24" aria-hidden="true">'
    '<path d="M7 4h3.5v16H7zM13.5 4H17v16h-3.5z"/></svg>'
)


@dataclass(frozen=True)
class TrackView:
    """One row of the page: what came in and what the service made of it."""

    name: str
    encoding: str  # for people: "WAV 24-bit"
    audio: Path | None  # to embed; None = not playable
    outcome: str  # "analysed", "duplicate", "failed" or "mixed"
    note: str  # a sentence: "Exact copy of drums: deleted", or the error
    sha256: str | None  # hex
    duration_s: float | None
    peaks: Sequence[float] | None  # 0..1, evenly spaced over the duration
    stages_s: Mapping[str, float]  # stage -> time spent in it


@dataclass(frozen=True)
class DemoReport:
    """All that the page shows."""

    title: str
    subtitle: str
    mix: TrackView
    tracks: Sequence[TrackView]
    elapsed_s: float
    checks: Sequence[tuple[str, bool]]  # (expectation, held)


def encode_mp3(audio: Path, mono: bool) -> bytes:
    """Any file libsndfile reads as MP3, for listening; rates above 48 kHz are averaged down.

    Raises:
        soundfile.LibsndfileError: the file cannot be read.
    """
    encoded = io.BytesIO()
    with sf.SoundFile(audio) as source:
        fold = -(-source.samplerate // MP3_MAX_RATE_HZ)
        channels = 1 if mono else min(2, source.channels)
        with sf.SoundFile(
            encoded,
            "w",
            source.samplerate // fold,
            channels,
            format="MP3",
            bitrate_mode="VARIABLE",
            compression_level=MP3_COMPRESSION,
        ) as target:
            for block in source.blocks(BLOCK_FRAMES * fold, dtype="float32", always_2d=True):
                kept = block[: len(block) // fold * fold].reshape(-1, fold, block.shape[1])
                samples = kept.mean(axis=1)
                target.write(samples.mean(axis=1) if channels == 1 else samples[:, :channels])
    return encoded.getvalue()


def write_page(path: Path, report: DemoReport) -> None:
    """Write the report as one self-contained HTML file.

    Raises:
        soundfile.LibsndfileError: an audio file of the report cannot be read.
    """
    views = [report.mix, *report.tracks]
    with ThreadPoolExecutor(2) as pool:  # LAME runs outside the GIL
        audio = list(pool.map(lambda view: _audio(view, mono=view is not report.mix), views))
    rows = [_row(view, number) for number, view in enumerate(views)]
    fields = {
        "title": escape(report.title),
        "subtitle": escape(report.subtitle),
        "summary": escape(_summary(report)),
        "mix": rows[0],
        "tracks": "\n".join(rows[1:]),
        "checks": _checks(report.checks),
        "data": _script_json([_data(*pair) for pair in zip(views, audio, strict=True)]),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    # One pass, so that a "[[data]]" in a track's name is text and not a field.
    page = re.sub(r"\[\[(\w+)\]\]", lambda field: fields[field[1]], template)
    path.write_text(page, encoding="utf-8")


def _audio(view: TrackView, mono: bool) -> str | None:
    if view.audio is None:
        return None
    return base64.b64encode(encode_mp3(view.audio, mono)).decode("ascii")


def _data(view: TrackView, audio: str | None) -> dict[str, object]:
    peaks = None
    if view.peaks is not None and len(view.peaks):
        heights = np.clip(np.nan_to_num(np.asarray(view.peaks, dtype=np.float64)), 0, 1)
        # Each track fills its row: stems are recorded with headroom and would look alike. A bar is
        # a few dozen pixels high, so one byte per peak shows all there is to see.
        peaks = np.rint(heights / max(heights.max(), 1e-3) * 255).astype(int).tolist()
    return {"peaks": peaks, "audio": audio, "duration": view.duration_s or 0}


def _script_json(value: object) -> str:
    """JSON that cannot end or open anything inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _summary(report: DemoReport) -> str:
    outcomes = [track.outcome for track in report.tracks]
    counts = [f"{len(outcomes)} tracks"]
    counts += [f"{outcomes.count(o)} {BADGES[o]}" for o in BADGES if o in outcomes]
    held = sum(ok for _, ok in report.checks)
    if report.checks:
        counts.append(f"{held} of {len(report.checks)} expectations held")
    return " · ".join([*counts, f"{report.elapsed_s:.1f} s"])


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _row(view: TrackView, number: int) -> str:
    name = escape(view.name)
    hue = (FIRST_HUE + (number - 1) * HUE_STEP) % 360 if number else MIX_HUE
    playable = view.audio is not None
    about = escape(view.encoding)
    if view.duration_s is not None:
        about += f' · <span class="clock"></span>{_clock(view.duration_s)}'
    wave = '<div class="wave empty"></div>'
    if playable:
        wave = (
            f'<div class="wave" role="slider" tabindex="0" aria-label="Position in {name}" '
            f'aria-valuemin="0" aria-valuenow="0" aria-valuemax="{view.duration_s or 0:.1f}">'
            "</div>"
        )
    elif view.peaks is not None and len(view.peaks):
        wave = f'<div class="wave" role="img" aria-label="Waveform of {name}"></div>'
    badge = escape(BADGES.get(view.outcome, view.outcome))
    tone = view.outcome if view.outcome in BADGES else "failed"
    foot = [f'<span class="badge {tone}">{badge}</span>']
    if view.note:
        foot.append(f'<span class="note">{escape(view.note)}</span>')
    if view.sha256:
        foot.append(
            f'<code title="SHA-256: {escape(view.sha256)}">{escape(view.sha256[:12])}</code>'
        )
    if view.stages_s:
        # Numbers stay with their stage where a narrow screen breaks the line.
        stages = " · ".join(
            f"<span>{escape(stage)} {1000 * spent_s:.0f} ms</span>"
            for stage, spent_s in view.stages_s.items()
        )
        foot.append(f'<span class="stages">{stages}</span>')
    return (
        f'<article class="track{"" if number else " mix"}" data-name="{name}" style="--hue:{hue}">'
        f'<button class="play" type="button" aria-label="Play {name}"'
        f"{'' if playable else ' disabled'}>{PLAY_ICONS}</button>"
        f'<div class="about"><div class="name">{name}</div>'
        f'<div class="encoding">{about}</div></div>'
        f'{wave}<div class="foot">{"".join(foot)}</div></article>'
    )


def _checks(checks: Sequence[tuple[str, bool]]) -> str:
    if not checks:
        return ""
    items = "".join(
        f"<li>{escape(text)}</li>" if held else f'<li class="broken">Not held: {escape(text)}</li>'
        for text, held in checks
    )
    return f'<h2>Expectations</h2><ul class="card checks">{items}</ul>'
