"""Commands for the service: run, start, stop, status, health, cleanup."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from waveflow_ray.settings import Settings


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def run(
    num_cpus: Annotated[
        int | None,
        typer.Option(help="CPUs of the Ray that is started here; all of the machine by default."),
    ] = None,
) -> None:
    """Run the service in the foreground.

    Joins the Ray cluster named by RAY_ADDRESS, or starts Ray on this machine. Log lines go to
    standard output. SIGTERM or Ctrl-C drains: running jobs finish within DRAIN_TIMEOUT_S, all
    else goes back to the queue. A second signal ends at once.

    Examples:

      waveflow run

      RAY_ADDRESS=auto LOG_FORMAT=json waveflow run
    """
    from waveflow_ray.runtime import app
    from waveflow_ray.settings import load_settings

    settings = app.resolve(load_settings())
    dashboard = app.connect(settings, may_start=True, num_cpus=num_cpus)
    if dashboard:
        typer.echo(app.dashboard_line(dashboard), err=True)
    service = app.start(settings, detached=False)
    app.run_until_signal(service, settings, lambda line: print(line, flush=True))


def start(
    replace: Annotated[
        bool, typer.Option("--replace", help="Take over from a service that runs there already.")
    ] = False,
    if_stopped: Annotated[
        bool, typer.Option("--if-stopped", help="Leave one that runs there already as it is.")
    ] = False,
    send_code: Annotated[
        bool,
        typer.Option(
            "--send-code", help="Run the code of this command on all nodes, not what they have."
        ),
    ] = False,
    stay: Annotated[int, typer.Option(hidden=True, help="Where to write that it is up.")] = -1,
) -> None:
    """Start the service on the running Ray cluster, and leave it running.

    A process stays, the driver: while it lives, Ray keeps the service's workers ready.

    With --replace the new one makes itself ready, then it takes the messages, and the old one ends
    its jobs: none is lost or told of twice. If the new one does not come up, the old one goes on.

    Examples:

      ray start --head && waveflow start

      RAY_ADDRESS=10.0.0.5:6379 waveflow start

      waveflow start --replace --send-code
    """
    from waveflow_ray.release import release
    from waveflow_ray.runtime import app, driver
    from waveflow_ray.settings import load_settings

    if stay < 0:
        given = {"--replace": replace, "--if-stopped": if_stopped, "--send-code": send_code}
        raise typer.Exit(driver.start_driver([name for name, is_set in given.items() if is_set]))
    settings = app.resolve(load_settings())
    dashboard = app.connect(settings, may_start=False, send_code=send_code)
    if if_stopped and app.runs():
        if app.status(app.find()).get("has_driver", True):
            typer.echo("WaveFlow runs there already.")
            return
        replace = True  # Ray started the actors again, from its state in Redis
    service = app.start(settings, detached=True, replace=replace)
    typer.echo(
        f"WaveFlow {release()} is running. `waveflow status` shows it, `waveflow stop` drains it."
    )
    if dashboard:
        typer.echo(app.dashboard_line(dashboard))
    driver.stay(service, stay)


def stop(
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for running jobs; DRAIN_TIMEOUT_S by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Drain the service and end it.

    Running jobs finish and are reported, all else goes back to the queue.

    Example:

      waveflow stop --timeout 120
    """
    from waveflow_ray.runtime import app
    from waveflow_ray.settings import load_settings

    settings = load_settings()
    app.connect(settings, may_start=False)
    timeout_s = settings.drain_timeout_s if timeout is None else timeout
    result = app.stop(app.find(), settings, timeout_s)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(
            f"Stopped: {result['finished']} jobs finished, {result['given_back']} given back."
        )


def status(as_json: Json = False) -> None:
    """Show jobs in flight by kind and stage, counts, queue depths and workers.

    Examples:

      waveflow status

      watch -n 2 waveflow status

      waveflow status --json | jq .queue.visible
    """
    from waveflow_ray.runtime import app
    from waveflow_ray.runtime.nodes import cluster_nodes
    from waveflow_ray.settings import load_settings

    settings = load_settings()
    dashboard = app.connect(settings, may_start=False)
    state = app.status(app.find())
    state |= {"nodes": cluster_nodes(), "dashboard": dashboard}
    if as_json:
        typer.echo(json.dumps(state, indent=2))
    else:
        _print_status(state)


def _print_status(state: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from waveflow_ray.jobs.maintenance import node_summary
    from waveflow_ray.runtime import app

    console = Console()
    mood = "draining" if state["draining"] else "running"
    if state["main_server_away"]:
        mood += ", intake paused: the main server is away"
    queue = state["queue"]
    console.print(f"[bold]WaveFlow[/bold] {state['release']} is {mood}")
    if not state.get("has_driver", True):  # an older release does not tell
        console.print(
            "[yellow]Its driver is gone, so Ray keeps no workers ready: every job starts a process."
            "[/yellow] `waveflow start --replace` mends that."
        )
    console.print(f"Queue: {queue['visible']} waiting, {queue['in_flight']} in flight")
    console.print(f"Ray:   {node_summary(state['nodes'])}")
    if state["dashboard"]:
        console.print(app.dashboard_line(state["dashboard"]), soft_wrap=True)
    stages = ("waiting", "running", "pausing", "reporting")
    table = Table("kind", *stages, "succeeded", "failed")
    for kind in ("hash", "duplicate", "analysis", "mix", "health", "cleanup", "rejected"):
        held = state["in_flight"].get(kind, {})
        counts = [state["done"].get(f"{kind}:{end}", 0) for end in ("SUCCESS", "FAILURE")]
        if held or any(counts):
            table.add_row(kind, *(str(held.get(stage, 0)) for stage in stages), *map(str, counts))
    console.print(table)
    more = {
        "tried again": state["done"].get("retried", 0),
        "dead letters": state["done"].get("dead_letters", 0),
        "leases lost": sum(state["leases_lost"].values()),
        "webhooks repeated": state["webhook_retries"],
    }
    console.print(", ".join(f"{name} {count}" for name, count in more.items()))


def health(as_json: Json = False) -> None:
    """Check S3, SQS, the main server and, if there is one, the Ray cluster.

    Exit code 1 if something is wrong.

    Example:

      waveflow health --json
    """
    from waveflow_ray.jobs import maintenance
    from waveflow_ray.settings import load_settings

    settings = load_settings()
    report = maintenance.report(maintenance.health(settings, _nodes(settings)))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        for check in report["checks"]:
            mark = "ok  " if check["ok"] else "FAIL"
            typer.echo(f"{mark} {check['name']:<8} {check['detail']} ({check['seconds']:.2f} s)")
    if not report["ok"]:
        raise typer.Exit(1)


def cleanup(as_json: Json = False) -> None:
    """Remove old files from this machine's scratch folder now.

    The running service does this by itself on every node.

    Example:

      waveflow cleanup
    """
    from waveflow_ray.jobs import maintenance
    from waveflow_ray.settings import load_settings

    removed = maintenance.cleanup(load_settings())
    if as_json:
        typer.echo(json.dumps({"removed": removed}))
    else:
        typer.echo("\n".join([*removed, f"{len(removed)} files removed"]))


def _nodes(settings: Settings) -> list[dict[str, Any]] | None:
    """Ray's nodes, if a cluster is there to ask."""
    from waveflow_ray.runtime import app
    from waveflow_ray.runtime.nodes import cluster_nodes

    try:
        app.connect(settings, may_start=False)
    except app.ServiceError:
        return [] if settings.ray_address else None
    return cluster_nodes()
