"""`waveflow enqueue`: send a job to the queue by hand, as the main server would."""

from __future__ import annotations

import json
import time
import uuid
from typing import Annotated, Any

import typer

from waveflow_ray.cli import mix

app = typer.Typer(
    help="Send a job to the queue, in the envelope shape of the main server.",
    no_args_is_help=True,
)

Stem = Annotated[str, typer.Option("--stem-id", help="The stem; a new UUID by default.")]
Filepath = Annotated[str, typer.Argument(help="The object's key in the bucket.")]
User = Annotated[str | None, typer.Option("--user-id")]
Track = Annotated[str | None, typer.Option("--track-id")]
Stage = Annotated[str | None, typer.Option("--stage-id")]
Upstream = Annotated[str | None, typer.Option("--upstream-id")]
Name = Annotated[str | None, typer.Option("--original-filename")]
Hash = Annotated[str | None, typer.Option("--audio-hash", help="SHA-256 of the file, hex.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the message, do not send it.")]


@app.command("hash")
def hash_job(
    filepath: Filepath,
    stem_id: Stem = "",
    user_id: User = None,
    track_id: Track = None,
    stage_id: Stage = None,
    original_filename: Name = None,
    dry_run: DryRun = False,
) -> None:
    """Hash a file: waveflow enqueue hash songs/drums.wav --stage-id s1"""
    fields = {
        "userId": user_id,
        "trackId": track_id,
        "stageId": stage_id,
        "filepath": filepath,
        "original_filename": original_filename,
    }
    _send("HashJob", _stem(stem_id) | fields, dry_run)


@app.command("duplicate")
def duplicate_job(
    filepath: Filepath,
    stem_id: Stem = "",
    user_id: User = None,
    track_id: Track = None,
    audio_hash: Hash = None,
    dry_run: DryRun = False,
) -> None:
    """Delete a copy: waveflow enqueue duplicate songs/copy.wav --audio-hash 9f86d0…"""
    fields = {
        "userId": user_id,
        "trackId": track_id,
        "filepath": filepath,
        "audio_hash": audio_hash,
    }
    _send("DuplicateJob", _stem(stem_id) | fields, dry_run)


@app.command("analysis")
def analysis_job(
    filepath: Filepath,
    stem_id: Stem = "",
    user_id: User = None,
    track_id: Track = None,
    upstream_id: Upstream = None,
    original_filename: Name = None,
    audio_hash: Hash = None,
    num_peaks: Annotated[int | None, typer.Option(help="1 to 100000.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Compute a waveform: waveflow enqueue analysis songs/drums.wav --num-peaks 2000"""
    fields = {
        "userId": user_id,
        "trackId": track_id,
        "filepath": filepath,
        "audio_hash": audio_hash,
        "original_filename": original_filename,
        "num_peaks": num_peaks,
        "upstreamId": upstream_id,
    }
    _send("AnalysisJob", _stem(stem_id) | fields, dry_run)


@app.command("mix")
def mix_job(
    stem_paths: Annotated[list[str] | None, typer.Argument(help="Keys of the stems.")] = None,
    stage_id: Stage = None,
    upstream_id: Upstream = None,
    spec: mix.Spec = None,
    output_format: Annotated[str | None, typer.Option(help="wav, flac, ogg or mp3.")] = None,
    normalization: mix.Normalization = None,
    target_peak_dbfs: mix.TargetPeak = None,
    target_lufs: mix.TargetLufs = None,
    true_peak_dbtp: mix.TruePeak = None,
    bit_depth: mix.BitDepth = None,
    dither: mix.Dither = None,
    sample_rate: mix.SampleRate = None,
    channels: mix.Channels = None,
    dry_run: DryRun = False,
) -> None:
    """Mix stems: waveflow enqueue mix a.wav b.flac --stage-id s1 --normalization loudness"""
    fields = mix.spec_fields(spec) | mix.given(
        output_format=output_format,
        normalization=normalization,
        target_peak_dbfs=target_peak_dbfs,
        target_lufs=target_lufs,
        true_peak_dbtp=true_peak_dbtp,
        bit_depth=bit_depth,
        dither=dither,
        sample_rate=sample_rate,
        channels=channels,
    )
    if stem_paths:
        fields["stem_paths"] = stem_paths
    _send("MixJob", {"stageId": stage_id, "upstreamId": upstream_id} | fields, dry_run)


def _stem(stem_id: str) -> dict[str, Any]:
    return {"stemId": stem_id or str(uuid.uuid4())}


def _send(model_name: str, fields: dict[str, Any], dry_run: bool) -> None:
    from waveflow_ray import messages

    model: type[messages.Job] = getattr(messages, model_name)
    subject = fields.get("stemId") or fields.get("stageId") or uuid.uuid4()
    job_id = f"{model.kind}-{subject}-{time.time_ns() // 1_000_000}"
    body = messages.envelope(model, job_id, **fields)
    job = messages.parse(body, job_id)
    if isinstance(job, messages.RejectedJob):
        raise typer.BadParameter(job.reason)
    if dry_run:
        typer.echo(json.dumps(json.loads(body), indent=2, ensure_ascii=False))
        return
    from waveflow_ray.aws.sqs import queue_of
    from waveflow_ray.settings import load_settings

    message_id = queue_of(load_settings()).send(body)
    typer.echo(f"queued {job_id} (message {message_id})")
