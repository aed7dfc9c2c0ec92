"""The doctor beside setups that are well, and others that are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.proxy import Asked, Fault, proxy
from tests.support import Receiver, World, receiver
from waveflow_ray.cli import app

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "t0ken-that-nobody-may-see"
FOURTEEN_DAYS = {"MessageRetentionPeriod": "1209600"}


@pytest.fixture
def main_server() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


@pytest.fixture
def env(
    world: World,
    main_server: Receiver,
    no_ray: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> pytest.MonkeyPatch:
    """A setup that is well; without a Ray cluster."""
    monkeypatch.chdir(tmp_path)
    own = {
        "WEBHOOK_URL": main_server.url,
        "WEBHOOK_SECRET": f"{SECRET} whsec_{'QUFB' * 8}",
        "WEBHOOK_TOKEN": TOKEN,
        "SCRATCH_DIR": str(tmp_path),
        "MAX_FILE_SIZE_MB": "1",
    }
    for name, value in (world.env | own).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the findings by `group/name`."""
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    report = json.loads(result.stdout)
    assert report["ok"] == (result.exit_code == 0)
    return result.exit_code, {f"{f['group']}/{f['name']}": f for f in report["findings"]}


def others(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is not well; each says how to mend it."""
    assert all(f["mend"] for f in found.values() if f["state"] != "ok" and f["name"] != "check")
    return {name: f["state"] for name, f in found.items() if f["state"] != "ok"}


def test_a_good_setup_is_called_good(
    env: pytest.MonkeyPatch, world: World, main_server: Receiver
) -> None:
    """Nothing to warn of but what moto's bucket lacks; nothing left, no event sent, no secret."""
    for queue in (world.queue, world.dead_letters):
        queue.client.set_queue_attributes(QueueUrl=queue.url, Attributes=FOURTEEN_DAYS)
    code, found = doctor()
    assert code == 0
    assert others(found) == {"Bucket/outcomes": "warn", "Bucket/uploads": "warn"}
    expected = {"AWS/clock", "Bucket/delete", "Queue/redrive", "Ray/cluster", "This machine/codecs"}
    assert expected < found.keys()
    assert "2 secrets" in found["Webhook/signature"]["found"]
    assert list(world.bucket.keys("_waveflow/doctor/")) == []
    assert world.left() == {"visible": 0, "in_flight": 0, "delayed": 0, "dead": 0}
    assert main_server.received == []
    assert doctor("--strict")[0] == 1
    text = CliRunner().invoke(app, ["doctor"]).output
    for secret in (SECRET.removeprefix("whsec_"), TOKEN):
        assert secret not in text + json.dumps(found)


def test_rules_of_the_bucket_are_seen(env: pytest.MonkeyPatch, world: World) -> None:
    """Those that docs/operations.md asks for."""
    rules: list[Any] = [
        {
            "ID": "outcomes",
            "Status": "Enabled",
            "Filter": {"Prefix": "_waveflow/outcomes/"},
            "Expiration": {"Days": 14},
        },
        {
            "ID": "uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        },
    ]
    client, name = world.bucket.client, world.bucket.name
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    try:
        _, found = doctor()
    finally:
        client.delete_bucket_lifecycle(Bucket=name)
    assert found["Bucket/outcomes"]["state"] == found["Bucket/uploads"]["state"] == "ok"


def test_a_missing_bucket_and_a_missing_queue(env: pytest.MonkeyPatch) -> None:
    """Both at once: one failed check does not hide the next."""
    env.setenv("S3_BUCKET_NAME", "not-there")
    env.delenv("SQS_QUEUE_URL")
    env.setenv("SQS_QUEUE_NAME", "not-there")
    code, found = doctor()
    assert code == 1
    assert others(found) == {"Bucket/bucket": "fail", "Queue/queue": "fail"}
    assert "S3_BUCKET_NAME" in found["Bucket/bucket"]["mend"]
    assert "SQS_QUEUE_NAME" in found["Queue/queue"]["mend"]


@pytest.mark.parametrize(("receives", "state"), [("3", "fail"), ("5", "warn"), ("10", "ok")])
def test_redrive_is_held_against_max_retries(
    env: pytest.MonkeyPatch, world: World, receives: str, state: str
) -> None:
    """SQS must not take a job away before it has ended."""
    arn = f"arn:aws:sqs:ap-northeast-2:123456789012:{world.dead_letters.url.rpartition('/')[2]}"
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": receives})
    world.queue.client.set_queue_attributes(
        QueueUrl=world.queue.url, Attributes={"RedrivePolicy": policy}
    )
    _, found = doctor()
    assert found["Queue/redrive"]["state"] == state


def test_other_queues_are_not_what_is_needed(env: pytest.MonkeyPatch, world: World) -> None:
    """A FIFO queue, without a redrive policy, that delays; and dead letters among the jobs."""
    url = world.queue.client.create_queue(
        QueueName="doctor.fifo", Attributes={"FifoQueue": "true", "DelaySeconds": "9"}
    )["QueueUrl"]
    env.setenv("SQS_QUEUE_URL", url)
    env.setenv("SQS_DLQ_URL", url)
    code, found = doctor()
    assert code == 1
    states = {name: state for name, state in others(found).items() if name.startswith("Queue")}
    assert states == {
        "Queue/queue": "fail",
        "Queue/delay": "warn",
        "Queue/redrive": "fail",
        "Queue/dead letters": "fail",
    }


def test_dead_letters_are_pointed_at(env: pytest.MonkeyPatch, world: World) -> None:
    """They are somebody's jobs."""
    world.dead_letters.send("{}")
    code, found = doctor()
    assert code == 0
    assert found["Queue/dead letters"]["state"] == "warn"
    assert "dlq list" in found["Queue/dead letters"]["mend"]


def test_the_main_server_is_away_or_redirects(
    env: pytest.MonkeyPatch, main_server: Receiver
) -> None:
    """And webhooks without a signature are worth a word."""
    main_server.page = 301
    _, found = doctor()
    assert found["Webhook/server"]["state"] == "warn"
    assert "https://elsewhere.example/" in found["Webhook/server"]["mend"]
    main_server.page = 502
    _, found = doctor()
    assert found["Webhook/server"]["state"] == "warn"
    env.setenv("WEBHOOK_URL", "http://127.0.0.1:9")
    env.delenv("WEBHOOK_SECRET")
    code, found = doctor()
    assert code == 1
    assert found["Webhook/server"]["state"] == "fail"
    assert found["Webhook/signature"]["state"] == "warn"


def test_a_storage_without_conditions_and_listing(env: pytest.MonkeyPatch, world: World) -> None:
    """A bucket policy without s3:ListBucket, and a storage that refuses deletes."""

    def choose(asked: Asked) -> Fault | None:
        return "unavailable" if asked.method == "DELETE" and "doctor" in asked.path else None

    with proxy(world.aws.endpoint, choose=choose) as storage:
        env.setenv("AWS_ENDPOINT_URL", storage.url)
        code, found = doctor()
    assert code == 1
    assert found["Bucket/delete"]["state"] == "fail"
    assert "Permissions" in found["Bucket/delete"]["mend"]
    for key, _ in world.bucket.keys("_waveflow/doctor/"):
        world.bucket.delete(key)


def test_a_scratch_folder_that_cannot_be_written(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first job would fail there."""
    (tmp_path / "file").write_text("")
    env.setenv("SCRATCH_DIR", str(tmp_path / "file"))
    code, found = doctor()
    assert code == 1
    assert found["This machine/scratch"]["state"] == "fail"


def test_wrong_settings_are_findings_too(env: pytest.MonkeyPatch) -> None:
    """One line for each, none with a secret."""
    env.setenv("WEBHOOK_SECRET", "no-secret-at-all")
    env.setenv("MAX_RETRIES", "x")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "no-secret-at-all" not in result.output
    assert "MAX_RETRIES=x" in result.output


def test_a_cluster_that_is_named_has_to_be_there(env: pytest.MonkeyPatch) -> None:
    """Without a name, none is fine: `waveflow run` brings its own."""
    env.setenv("RAY_ADDRESS", "127.0.0.1:9")
    code, found = doctor()
    assert code == 1
    assert found["Ray/cluster"]["state"] == "fail"
    assert ":9 does not answer" in found["Ray/cluster"]["found"]
