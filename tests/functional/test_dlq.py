"""Dead letters: listed, replayed and purged, and none of them lost on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support import World
from waveflow_ray.aws.sqs import Queue
from waveflow_ray.cli import app
from waveflow_ray.messages import HashJob, envelope

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (world.env | {"WEBHOOK_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    # SQS may need a moment to find what is there; moto has it all at hand.
    monkeypatch.setattr("waveflow_ray.aws.dead.WAIT_S", 0)


@pytest.fixture
def letters(world: World) -> list[str]:
    """Three that the service buried, one that SQS moved by itself."""
    queue = Queue(world.queue.client, world.queue.url)
    assert queue.facts().dlq_url
    bodies = [envelope(HashJob, f"hash-{n}", stemId=f"s-{n}", filepath="k") for n in range(3)]
    for number, body in enumerate(bodies):
        queue.send(body)
        (message,) = queue.receive(1, 30, 1)
        code = "webhook_refused" if number else "storage_unavailable"
        queue.bury(message, code, "400 no such stem", f"hash-{number}")
        queue.delete([message.handle])
    world.dead_letters.send("not even JSON")
    return [*bodies, "not even JSON"]


def waveflow(*arguments: str, stdin: str | None = None) -> Result:
    return RUNNER.invoke(app, ["dlq", *arguments], input=stdin)


def listed(*arguments: str) -> list[dict[str, Any]]:
    result = waveflow("list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return sorted(found, key=lambda letter: str(letter["job_id"]))


def jobs_in(world: World) -> list[str]:
    return sorted(message.body for message in world.queue.receive(0, 0, 10))


def test_looking_changes_nothing(letters: list[str], world: World) -> None:
    for _ in range(2):
        found = listed()
        assert sorted(letter["body"] for letter in found) == sorted(letters)
        assert world.dead_letters.facts().visible == 4
    first = next(letter for letter in found if letter["job_id"] == "hash-0")
    assert (first["code"], first["kind"], first["subject"]) == (
        "storage_unavailable",
        "hash",
        "stem:s-0",
    )
    assert first["reason"] == "400 no such stem"
    assert first["attempts"] == 1
    assert [len(listed("--code", "webhook_refused")), len(listed("--limit", "2"))] == [2, 2]
    shown = waveflow("list").stdout
    assert "moved by SQS" in shown
    assert "4 dead letters" in shown
    assert "400 no such stem" in waveflow("show", first["id"]).stdout


def test_a_replay_is_a_new_message(letters: list[str], world: World) -> None:
    first = listed("--code", "storage_unavailable")[0]
    assert "would replay" in waveflow("replay", first["id"], "--dry-run").stdout
    assert not jobs_in(world)
    assert waveflow("replay", first["id"]).exit_code == 0
    (message,) = world.queue.receive(1, 30, 1)
    assert (message.body, message.receives) == (letters[0], 1)
    assert len(listed()) == 3
    assert waveflow("replay", "--all", "--code", "webhook_refused").exit_code == 0
    assert jobs_in(world) == sorted(letters[1:3])
    assert [letter["body"] for letter in listed()] == ["not even JSON"]


def test_a_replay_that_fails_keeps_the_letter(
    letters: list[str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise OSError("no")

    monkeypatch.setattr(Queue, "send", refuse)
    assert waveflow("replay", "--all").exit_code == 1
    assert len(listed()) == len(letters)


def test_a_purge_asks_before(letters: list[str], world: World) -> None:
    assert waveflow("purge", "--all", stdin="n\n").exit_code == 1
    assert len(listed()) == 4
    assert waveflow("purge", "--all", "--code", "webhook_refused", stdin="y\n").exit_code == 0
    assert len(listed()) == 2
    assert waveflow("purge", "--all", "--yes").exit_code == 0
    assert waveflow("list").stdout == "The dead-letter queue is empty.\n"


def test_what_makes_no_sense_is_refused(letters: list[str]) -> None:
    assert waveflow("replay").exit_code == 2
    assert waveflow("purge", "some-id", "--all", "--yes").exit_code == 2
    missing = waveflow("replay", "no-such-id")
    assert missing.exit_code == 1
    assert "not there: no-such-id" in missing.stderr
    assert len(listed()) == len(letters)
