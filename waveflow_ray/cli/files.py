"""The service's work on local files: hash and peaks. No Ray, no AWS, no settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True)]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def hash_files(files: Files, as_json: Json = False) -> None:
    """Print the SHA-256 of files, as sha256sum does.

    Example:

      waveflow hash drums.wav bass.flac
    """
    from waveflow_ray.audio.hashing import hash_file

    rows = []
    for path in files:
        digest, size = hash_file(path)
        rows.append({"path": str(path), "audio_hash": digest, "file_size": size})
        if not as_json:
            typer.echo(f"{digest}  {path}")
    if as_json:
        typer.echo(json.dumps(rows, indent=2))


def peaks(
    file: File,
    num_peaks: Annotated[int, typer.Option("--num-peaks", "-n", min=1, max=100_000)] = 4000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the waveform JSON there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the waveform of a file; prints it as a picture, or writes the JSON.

    Examples:

      waveflow peaks drums.wav

      waveflow peaks drums.wav --num-peaks 2000 --output drums.json
    """
    from waveflow_ray.audio.decode import open_audio
    from waveflow_ray.audio.peaks import waveform_of
    from waveflow_ray.outcomes import waveform_document

    with open_audio(file) as reader:
        waveform = waveform_of(reader, num_peaks)
    document = waveform_document(waveform, truncated=waveform.truncated)
    if output is not None:
        output.write_text(json.dumps(document, separators=(",", ":")))
    if as_json:
        typer.echo(json.dumps(document, separators=(",", ":")))
        return
    typer.echo(
        f"{file}: {waveform.duration:.2f} s, {waveform.sample_rate} Hz, {waveform.channels} ch"
        + (", breaks off before its end" if waveform.truncated else "")
    )
    typer.echo(picture(waveform.peaks))


def picture(peaks: list[float], width: int = 76) -> str:
    """The peaks as one line of block characters."""
    bars = " ▁▂▃▄▅▆▇█"
    step = max(1, len(peaks) / width)
    columns = (
        peaks[int(i * step) : max(int(i * step) + 1, int((i + 1) * step))] for i in range(width)
    )
    return "".join(bars[round(max(column, default=0.0) * 8)] for column in columns)
