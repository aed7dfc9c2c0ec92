"""`waveflow doctor`: everything that the service needs, looked at."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from waveflow_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from waveflow_ray.doctor.findings import Finding, State

COLOURS: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 for warnings, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at settings, AWS, webhooks, Ray and this machine; say what to mend.

    Writes one object to the bucket and deletes it again; sends the main server no event.
    Exit code 1 if something fails.

    Examples:

      waveflow doctor

      waveflow doctor --strict --json | jq '.findings[] | select(.state != "ok")'
    """
    found = []
    for group, findings in groupby(_findings(), lambda finding: finding.group):
        if not as_json:
            typer.secho(group, bold=True)
        for finding in findings:
            found.append(finding)
            if not as_json:
                _print(finding)
    states = [finding.state for finding in found]
    failed = "fail" in states or (strict and "warn" in states)
    if as_json:
        report = {"ok": not failed, "findings": [asdict(finding) for finding in found]}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        counts = (f"{states.count(state)} {state}" for state in COLOURS)
        typer.echo(f"\n{', '.join(counts)}")
    if failed:
        raise typer.Exit(1)


def _findings() -> Iterator[Finding]:
    from waveflow_ray.doctor import examine
    from waveflow_ray.doctor.findings import Group
    from waveflow_ray.settings import load_settings

    group = Group("Settings")
    try:
        settings = load_settings()
    except ConfigurationError as error:
        for line in str(error).splitlines():
            yield group.fail("settings", line, "docs/operations.md lists them")
        return
    yield group.ok("settings", "complete")
    yield from examine(settings)


def _print(finding: Finding) -> None:
    mark = typer.style(f"{finding.state:<4}", fg=COLOURS[finding.state])
    typer.echo(f"  {mark}  {finding.name:<16} {finding.found}")
    if finding.mend:
        typer.echo(f"{'':<25}→ {finding.mend}")
