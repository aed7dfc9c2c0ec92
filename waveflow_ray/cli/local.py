"""`waveflow local` and `waveflow demo`: everything on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def local(
    receiver_port: Annotated[
        int, typer.Option(help="Port of the webhook receiver; a free one by default.")
    ] = 0,
    aws_port: Annotated[int, typer.Option(help="Port of S3 and SQS; a free one by default.")] = 0,
    webhook_url: Annotated[
        str | None,
        typer.Option(help="Send webhooks to your own server instead of the built-in receiver."),
    ] = None,
    journal: Annotated[
        Path, typer.Option(help="File that gets one JSON line per webhook received.")
    ] = Path("webhooks.jsonl"),
    num_cpus: Annotated[int | None, typer.Option(help="CPUs for Ray; all by default.")] = None,
    service: Annotated[
        bool,
        typer.Option(
            "--service/--no-service",
            help="Without it only S3, SQS and the main server; the service runs elsewhere.",
        ),
    ] = True,
    host: Annotated[
        str,
        typer.Option(help="For --no-service: the address to listen on; 0.0.0.0 in a container."),
    ] = "127.0.0.1",
) -> None:
    """Run the service with S3, SQS and a main server, all on this machine. Ctrl-C ends it.

    Prints the environment lines that point a NestJS server, or your shell, at it.

    Examples:

      waveflow local

      waveflow local --webhook-url http://localhost:3000/webhooks

      waveflow local --no-service --aws-port 5000 --receiver-port 3000
    """
    from waveflow_ray.local.stack import run_local, run_neighbours

    if not service:
        run_neighbours(receiver_port, aws_port, host, journal)
        return
    run_local(receiver_port, aws_port, webhook_url, journal, num_cpus)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the song, the mix and the page.")
    ] = Path("demo-output"),
    seconds: Annotated[float, typer.Option(min=8, max=600, help="Length of the song.")] = 64.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running afterwards, until Ctrl-C.")
    ] = False,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs for Ray; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a song, send it through the whole service, and check and show what comes back.

    Exit code 0 only if every expectation held.

    Examples:

      waveflow demo

      waveflow demo --keep --output /tmp/song
    """
    from waveflow_ray.local.demo import run_demo

    if not run_demo(output, seconds, keep=keep, num_cpus=num_cpus, as_json=as_json):
        raise typer.Exit(1)
