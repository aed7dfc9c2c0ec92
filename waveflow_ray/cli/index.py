"""`waveflow index`: the index of known copies for a bucket that is older than the service."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def index(
    prefix: Annotated[str, typer.Argument(help="Only keys that begin so.")] = "",
    after: Annotated[
        str | None, typer.Option(help="Begin behind this key, not where the last run stopped.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin with the first key.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Objects read at a time.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hash what is in the bucket, so that the guard of duplicate jobs knows every copy.

    Uploads that the service hashed are known. Goes on where it was stopped; done twice it
    changes nothing. Exit code 1 if an object could not be read.

    Examples:

      waveflow index

      waveflow index songs/ --threads 64

      waveflow index --restart --json
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from waveflow_ray.aws.s3 import bucket_of
    from waveflow_ray.jobs.index import Indexed, index_bucket
    from waveflow_ray.jobs.work import copies_of
    from waveflow_ray.settings import load_settings

    settings = load_settings()
    bucket = bucket_of(settings)
    columns = (
        TextColumn("{task.fields[objects]} objects"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("hashing", total=None, objects=0, last="")

        def tell(so_far: Indexed) -> None:
            bar.update(task, completed=so_far.bytes, objects=so_far.objects, last=so_far.last[-40:])

        done = index_bucket(
            bucket,
            copies_of(settings, bucket),
            prefix=prefix,
            after="" if restart else after,
            threads=threads,
            tell=tell,
        )
    if as_json:
        fields = {"objects": done.objects, "bytes": done.bytes, "failed": done.failed}
        typer.echo(json.dumps(fields, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{done.objects} objects hashed, {done.bytes / 2**20:.1f} MB")
        for key, why in done.failed.items():
            typer.echo(f"{key}: {why}", err=True)
    if done.failed:
        raise typer.Exit(1)
