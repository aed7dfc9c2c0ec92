"""`waveflow node`: a machine of a cluster. `ray up` calls these; people seldom do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Look after Ray on a machine of a cluster; `ray up` does so on every node.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[
    Path,
    typer.Option(help="With `.env`, node.pid, node.log and `current`, the code deployed last."),
]
HOME = Path("~/.waveflow")


@app.command()
def up(
    ray_arguments: Annotated[list[str], typer.Argument(help="Of `ray start`, after `--`.")],
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay: for systemd, or as a container's command.")
    ] = False,
    folder: Folder = HOME,
    tell: Annotated[int, typer.Option(hidden=True, help="Where to write how it went.")] = -1,
) -> None:
    """Start Ray here, and keep it running; on the head, start the service.

    What an earlier `up` left here is ended first. If Ray's processes die, they are started again.
    On a worker, the instance's metadata are asked for a spot notice, which drains the node. Returns
    when all is up, with exit code 1 and the reason if it is not; it is tried again all the same.

    Settings come from the environment or from `.env` in the folder.

    Examples:

      waveflow node up -- --head --port=6379

      waveflow node up -- --address=10.0.0.5:6379
    """
    from waveflow_ray.node.keeper import Keeper, Place, end, prepare
    from waveflow_ray.node.spot import Metadata
    from waveflow_ray.settings import load_node_settings

    place = Place(folder.expanduser().absolute())
    place.folder.mkdir(parents=True, exist_ok=True)
    if not foreground:
        raise typer.Exit(_up_in_background(ray_arguments, place.folder))
    end(place)
    settings = load_node_settings(place.folder / ".env")
    prepare(place, settings)
    metadata = Metadata(settings.aws_ec2_metadata_service_endpoint)
    Keeper(ray_arguments, place, _Told(tell), metadata).run()


class _Told:
    """Passes on how the start went, the first time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, trouble: str) -> None:
        if self._descriptor >= 0:
            os.write(self._descriptor, (trouble or "ok").encode())
            os.close(self._descriptor)
            self._descriptor = -1
        elif trouble:
            print(trouble, file=sys.stderr, flush=True)


def _up_in_background(ray_arguments: list[str], folder: Path) -> int:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "waveflow_ray", "node", "up", "--foreground"]
    with (folder / "node.log").open("ab") as log:
        subprocess.Popen(
            [*command, "--folder", str(folder), "--tell", str(writer), "--", *ray_arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read() or f"The keeper ended; {folder / 'node.log'} may say why."
    if text == "ok":
        typer.echo("Ray is up.")
        return 0
    typer.echo(text, err=True)
    return 1


@app.command()
def release(
    wheel: Annotated[Path, typer.Argument(help="Of the version to run from now on.")],
    folder: Folder = HOME,
) -> None:
    """Have a new version take over the service, on all nodes; on the head only.

    The wheel is unpacked here and its code sent to the nodes. The old service goes on until the new
    one has made itself ready, then drains. If the new one does not come up, nothing changes.

    Example:

      waveflow node release waveflow_ray-0.2.0-py3-none-any.whl
    """
    from waveflow_ray.node.keeper import Place
    from waveflow_ray.node.releases import unpack, use

    place = Place(folder.expanduser().absolute())
    unpacked = unpack(wheel, place.folder / "releases")
    start = [sys.executable, "-m", "waveflow_ray", "start", "--replace", "--send-code"]
    code = {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(start, cwd=place.folder, env=os.environ | code, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    use(unpacked, place.release)


@app.command()
def down(folder: Folder = HOME) -> None:
    """End what `up` started here: Ray, and with it what ran on this node.

    On the head, `waveflow stop` first lets running jobs end.

    Example:

      waveflow node down
    """
    from waveflow_ray.node.keeper import Place, end

    ended = end(Place(folder.expanduser()))
    typer.echo("Ended." if ended else "There is nothing to end.")


@app.command()
def drain(
    deadline: Annotated[
        int, typer.Option(help="Seconds after which Ray ends here, whatever still runs.")
    ] = 120,
) -> None:
    """Let this node take no new tasks; what runs may end, until the deadline.

    What is cut off then is started once more elsewhere.

    Example:

      waveflow node drain --deadline 90
    """
    from waveflow_ray.runtime.drain import drain_this_node

    drain_this_node(deadline)
    typer.echo(f"Draining; Ray ends here in {deadline} s at the latest.")
