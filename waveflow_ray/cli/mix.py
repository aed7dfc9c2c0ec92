"""`waveflow mix`: a mix of local files; and the options that it shares with `enqueue mix`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waveflow_ray.errors import ErrorCode, JobError

if TYPE_CHECKING:
    from waveflow_ray.audio.mix import Mixdown, Progress
    from waveflow_ray.audio.plan import MixPlan
    from waveflow_ray.audio.spec import MixSpec

Spec = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="JSON with the fields of a mix message: `stems` with gain_db, pan, offset_s, … and "
        "the options below, which are stronger.",
    ),
]
Normalization = Annotated[
    str | None, typer.Option(help="average (as the Celery worker), peak, loudness or none.")
]
TargetPeak = Annotated[float | None, typer.Option(help="For peak; -1 by default.")]
TargetLufs = Annotated[float | None, typer.Option(help="For loudness; -14 by default.")]
TruePeak = Annotated[float | None, typer.Option(help="For loudness: never above; -1 by default.")]
BitDepth = Annotated[int | None, typer.Option(help="16, 24 or 32 (float; WAV only).")]
Dither = Annotated[bool | None, typer.Option("--dither", help="TPDF, for 16 and 24 bits.")]
SampleRate = Annotated[int | None, typer.Option(help="In Hz; the stems' highest by default.")]
Channels = Annotated[int | None, typer.Option(help="1 or 2; as the stems by default.")]


def mix(
    stems: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, readable=True)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write: .wav, .flac, .ogg or .mp3."),
    ] = None,
    spec: Spec = None,
    normalization: Normalization = None,
    target_peak_dbfs: TargetPeak = None,
    target_lufs: TargetLufs = None,
    true_peak_dbtp: TruePeak = None,
    bit_depth: BitDepth = None,
    dither: Dither = None,
    sample_rate: SampleRate = None,
    channels: Channels = None,
    waveform: Annotated[
        Path | None, typer.Option(help="Write the mix's waveform JSON there.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show how a cluster would share it out; mix nothing.")
    ] = False,
    cpus: Annotated[int, typer.Option(min=1, help="For --plan: CPUs of the cluster.")] = 2,
    progress: Annotated[bool, typer.Option("--progress", help="Show a progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mix files into one, as the service does.

    By default the sum divided by the number of stems, scaled down where it exceeds 0.95.

    Examples:

      waveflow mix drums.wav bass.flac vocals.mp3 --output mix.wav

      waveflow mix *.wav -o mix.mp3 --normalization loudness --target-lufs -16

      waveflow mix --spec song.json -o mix.flac --bit-depth 24 --progress

      waveflow mix *.wav --plan --cpus 16
    """
    from pydantic import ValidationError

    from waveflow_ray.audio.mix import mix_files, plan_files
    from waveflow_ray.audio.spec import MixSpec
    from waveflow_ray.outcomes import waveform_document

    fields = spec_fields(spec) | given(
        normalization=normalization,
        target_peak_dbfs=target_peak_dbfs,
        target_lufs=target_lufs,
        true_peak_dbtp=true_peak_dbtp,
        bit_depth=bit_depth,
        dither=dither,
        sample_rate=sample_rate,
        channels=channels,
    )
    if stems:
        fields["stems"] = [{"path": str(path)} for path in stems]
    if output is not None and output.suffix:
        fields["output_format"] = output.suffix[1:].lower()
    try:
        wish = MixSpec.model_validate(fields)
    except ValidationError as error:
        raise typer.BadParameter(_problems(error)) from None
    if plan:
        _show_plan(plan_files(wish, cpus), as_json)
        return
    if output is None:
        raise typer.BadParameter("say with --output which file to write, or ask for the --plan")
    started = time.perf_counter()
    try:
        with _progress_bar(progress) as report:
            mixdown = mix_files(wish, output, title=output.stem, progress=report)
    except OSError as error:
        raise JobError(ErrorCode.INTERNAL_ERROR, f"{output} cannot be written: {error}") from None
    seconds = round(time.perf_counter() - started, 3)
    if waveform is not None:
        waveform.write_text(json.dumps(waveform_document(mixdown)))
    if as_json:
        facts = {"output": str(output), **mixdown.facts, "seconds": seconds}
        typer.echo(json.dumps(facts, indent=2))
        return
    _show(output, wish, mixdown, seconds)


def spec_fields(path: Path | None) -> dict[str, Any]:
    """The fields in a --spec file."""
    if path is None:
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise typer.BadParameter(f"{path} is not a JSON object")
    return fields


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _problems(error: Any) -> str:
    return "; ".join(
        ".".join(str(part) for part in item["loc"])
        + ": " * bool(item["loc"])
        + item["msg"].removeprefix("Value error, ")
        for item in error.errors()[:3]
    )


@contextmanager
def _progress_bar(wanted: bool) -> Iterator[Progress]:
    if not wanted:
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("mixing", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _show(output: Path, spec: MixSpec, mixdown: Mixdown, seconds: float) -> None:
    from waveflow_ray.cli.files import picture

    facts, count = mixdown.facts, len(spec.stems)
    typer.echo(
        f"{output}: {count} {'stem' if count == 1 else 'stems'}, {mixdown.duration:.2f} s, "
        f"{mixdown.sample_rate} Hz, {mixdown.channels} ch, in {seconds} s"
    )
    typer.echo(
        f"loudness {_level(facts['integrated_lufs'])} LUFS, true peak "
        f"{_level(facts['true_peak_dbtp'])} dBTP, sample peak "
        f"{_level(facts['sample_peak_dbfs'])} dBFS, gain {_level(facts['applied_gain_db'])} dB"
    )
    if facts["limited_by_true_peak_db"]:
        typer.echo(f"{facts['limited_by_true_peak_db']} dB below the target: the true peak's limit")
    if facts["clipped_samples"]:
        typer.echo(
            f"clipped: {facts['clipped_samples']} samples, by up to {facts['clipped_by_db']} dB"
        )
    typer.echo(picture(mixdown.peaks))


def _level(decibels: float | None) -> str:
    return "-inf" if decibels is None else f"{decibels:.2f}"


def _show_plan(plan: MixPlan, as_json: bool) -> None:
    columns = [cell for cell in plan.cells if cell.window is not None]
    rows = [cell for cell in plan.cells if cell.window is None]
    table = [
        {
            "cells": len(cells),
            "what": what,
            "stems": len({part.index for cell in cells for part in cell.parts}),
            "stems_per_cell": max(len(cell.parts) for cell in cells),
            "memory_mb": round(max(cell.memory for cell in cells) / 2**20, 1),
        }
        for cells, what in ((columns, "a window, by byte range"), (rows, "a group, from start"))
        if cells
    ]
    fmt = plan.format
    facts = {
        "sample_rate": fmt.sample_rate,
        "channels": fmt.channels,
        "duration": None if plan.frames is None else plan.frames / fmt.sample_rate,
        "window_s": fmt.window_frames / fmt.sample_rate,
        "cells": table,
        "why": plan.why,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("cells", "each does", "stems", "stems in a cell", "memory of a cell")
    for row in table:
        shown.add_row(
            str(row["cells"]),
            str(row["what"]),
            str(row["stems"]),
            str(row["stems_per_cell"]),
            f"{row['memory_mb']} MB",
        )
    console = Console()
    console.print(shown)
    for reason in plan.why:
        console.print(reason, highlight=False)
