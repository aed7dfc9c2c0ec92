"""`waveflow dlq`: what is in the dead-letter queue, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from waveflow_ray.aws.dead import DeadLetter, DeadLetters
    from waveflow_ray.aws.sqs import Queue

app = typer.Typer(
    help="Jobs that could not be done or reported: list, show, replay, purge.",
    no_args_is_help=True,
)

Ids = Annotated[list[str] | None, typer.Argument(help="Ids as `waveflow dlq list` shows them.")]
Code = Annotated[str | None, typer.Option("--code", help="Only those with this code.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Look at so many at most.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
All = Annotated[bool, typer.Option("--all", help="All, or all with --code.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")]


@app.command("list")
def list_letters(code: Code = None, limit: Limit = 1000, as_json: Json = False) -> None:
    """What is there: id, age, kind, whom it is about, code, attempts.

    Example: waveflow dlq list --code webhook_refused
    """
    with _dead_letters() as (dead, _):
        found = [letter for letter in dead.letters(limit) if code in (None, letter.code)]
    if as_json:
        typer.echo(json.dumps([_fields(letter) for letter in found], indent=2, ensure_ascii=False))
        return
    if not found:
        typer.echo("The dead-letter queue is empty." if code is None else f"No {code} is there.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "age", "kind", "about", "code", "attempts")
    for letter in found:
        table.add_row(
            letter.id,
            _age(letter.age_s),
            letter.kind,
            letter.subject or "-",
            letter.code or "moved by SQS",
            str(letter.attempts or "-"),
        )
    Console().print(table)
    typer.echo(f"{len(found)} dead letters. `waveflow dlq show ID` tells why.")


@app.command("show")
def show(ids: Ids = None, limit: Limit = 1000, as_json: Json = False) -> None:
    """All that is known of some: reason and message.

    Example: waveflow dlq show 5fea7756-0ea4-451a-a703-a558b933e274
    """
    with _dead_letters() as (dead, _):
        found = _chosen(dead, ids, limit)
    if as_json:
        typer.echo(json.dumps([_fields(letter) for letter in found], indent=2, ensure_ascii=False))
        return
    for letter in found:
        typer.echo(f"{letter.id}: {letter.kind} {letter.job_id}, {_age(letter.age_s)} old")
        typer.echo(f"  {letter.code or 'moved by SQS'}: {letter.reason or 'received too often'}")
        typer.echo(f"  {letter.body}")


@app.command("replay")
def replay(
    ids: Ids = None,
    every: All = False,
    code: Code = None,
    limit: Limit = 1000,
    dry_run: DryRun = False,
) -> None:
    """Send messages back to the job queue, as new ones: their attempts count from 1 again.

    Examples: waveflow dlq replay 5fea7756-0ea4-451a-a703-a558b933e274

    waveflow dlq replay --all --code webhook_undelivered
    """
    with _dead_letters() as (dead, jobs):
        for letter in _chosen(dead, ids, limit, every, code):
            if not dry_run:
                dead.replay(letter, jobs.send)
            typer.echo(f"{'would replay' if dry_run else 'replayed'} {letter.id} {letter.job_id}")


@app.command("purge")
def purge(
    ids: Ids = None,
    every: All = False,
    code: Code = None,
    limit: Limit = 1000,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete messages for good.

    Example: waveflow dlq purge --all --code invalid_message --yes
    """
    with _dead_letters() as (dead, _):
        found = _chosen(dead, ids, limit, every, code)
        if not yes:
            typer.confirm(f"Delete {len(found)} messages for good?", abort=True)
        for letter in found:
            dead.delete(letter)
            typer.echo(f"deleted {letter.id} {letter.job_id}")


@contextmanager
def _dead_letters() -> Iterator[tuple[DeadLetters, Queue]]:
    """The dead letters, and the queue of jobs."""
    from waveflow_ray.aws.dead import DeadLetters
    from waveflow_ray.aws.sqs import Queue, QueueError, queue_of
    from waveflow_ray.settings import load_settings

    jobs = queue_of(load_settings())
    dlq_url = jobs.facts().dlq_url
    if dlq_url is None:
        raise QueueError(f"{jobs.url} has no dead-letter queue: set a redrive policy")
    with DeadLetters(Queue(jobs.client, dlq_url)) as dead:
        yield dead, jobs


def _chosen(
    dead: DeadLetters,
    ids: list[str] | None,
    limit: int,
    every: bool = False,
    code: str | None = None,
) -> list[DeadLetter]:
    """Those with these ids, or all; exit code 1 if one of them is not there."""
    if bool(ids) == every:
        raise typer.BadParameter("name ids, or say --all")
    found = [
        letter
        for letter in dead.letters(limit)
        if code in (None, letter.code) and (every or letter.id in (ids or []))
    ]
    missing = set(ids or []) - {letter.id for letter in found}
    if missing:
        typer.echo(f"not there: {', '.join(sorted(missing))}", err=True)
        raise typer.Exit(1)
    return found


def _fields(letter: DeadLetter) -> dict[str, Any]:
    return {name: value for name, value in asdict(letter).items() if name != "handle"}


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
