"""The command line: parse, build Settings, call, exit code. Heavy imports wait for their command.

Exit codes: 0 well, 1 it did not work, 2 wrong usage or settings.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from waveflow_ray import __version__
from waveflow_ray.cli import dlq, doctor, enqueue, files, index, local, mix, node, service
from waveflow_ray.errors import ConfigurationError, JobError

app = typer.Typer(
    name="waveflow",
    help="WaveFlow's audio service: hashes, waveforms and mixes on Ray, from SQS and S3.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"waveflow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


SERVICE, MACHINE, FILES = "The service", "On this machine", "Local files, without Ray or AWS"

app.command(rich_help_panel=SERVICE)(service.run)
app.command(rich_help_panel=SERVICE)(service.start)
app.command(rich_help_panel=SERVICE)(service.stop)
app.command(rich_help_panel=SERVICE)(service.status)
app.command(rich_help_panel=SERVICE)(service.health)
app.command(rich_help_panel=SERVICE)(doctor.doctor)
app.command(rich_help_panel=SERVICE)(service.cleanup)
app.command(rich_help_panel=SERVICE)(index.index)
app.add_typer(dlq.app, name="dlq", rich_help_panel=SERVICE)
app.add_typer(node.app, name="node", rich_help_panel=SERVICE)
app.add_typer(enqueue.app, name="enqueue", rich_help_panel=SERVICE)
app.command(rich_help_panel=MACHINE)(local.demo)
app.command("local", rich_help_panel=MACHINE)(local.local)
app.command("hash", rich_help_panel=FILES)(files.hash_files)
app.command(rich_help_panel=FILES)(files.peaks)
app.command(rich_help_panel=FILES)(mix.mix)


def main() -> None:
    """The `waveflow` command."""
    try:
        app()
    except ConfigurationError as error:
        _fail("Settings", str(error), 2)
    except JobError as error:
        _fail(str(error.code), error.message + (f" ({error.detail})" if error.detail else ""), 1)
    except Exception as error:
        # Told apart by name: importing them would import Ray and boto3 for every command.
        if type(error).__name__ not in ("ServiceError", "QueueError", "ReleaseError"):
            raise
        _fail("Error", str(error), 1)


def _fail(title: str, text: str, code: int) -> None:
    print(f"{title}: {text}", file=sys.stderr)
    sys.exit(code)
