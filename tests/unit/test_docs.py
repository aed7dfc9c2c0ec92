"""The documents say what the code does: settings, codes, commands, examples, links."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.main import get_command

from tests.prometheus import rules
from waveflow_ray.audio.mix import mix_files
from waveflow_ray.audio.peaks import Waveform
from waveflow_ray.audio.spec import MixSpec, StemSpec
from waveflow_ray.cli import app
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.messages import (
    POSITIONAL,
    AnalysisJob,
    DuplicateJob,
    HashJob,
    Job,
    MixJob,
    RejectedJob,
    parse,
)
from waveflow_ray.metrics import TABLE
from waveflow_ray.outcomes import Webhook, failure, success, waveform_document
from waveflow_ray.settings import Settings

ROOT = Path(__file__).parents[2]
MESSAGES = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
FOLDERS = ("docs", "examples", "benchmarks", "cluster")
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md")))
    if "node_modules" not in path.parts
)
ON_THE_CLOCK = {"timestamp", "processed_at", "processing_time"}


def section(text: str, title: str) -> str:
    """From a heading to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.M | re.S)
    assert found, f"there is no section {title!r}"
    return found[2]


def json_blocks(text: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]


def job_examples() -> list[str]:
    return [json.dumps(block) for block in json_blocks(section(MESSAGES, "Jobs"))]


def job_example(kind: type[Job]) -> Job:
    """The example of a kind, in the envelope shape."""
    jobs = [parse(body, "message-id") for body in job_examples()]
    return next(job for job in jobs if isinstance(job, kind))


def webhook_example(**expected: Any) -> dict[str, Any]:
    """The webhook in the document that has these fields."""
    blocks = json_blocks(section(MESSAGES, "Webhooks"))
    found = [b for b in blocks if all(b.get(k, "-") == v for k, v in expected.items())]
    assert len(found) == 1, f"{len(found)} examples with {expected}"
    return found[0]


def default_of(name: str) -> str:
    """The default of a setting, as the table shows it."""
    field = Settings.model_fields[name]
    default = field.default
    if field.is_required():
        return "**required**"
    if default is None:
        return "–"
    if isinstance(default, tuple):
        return ",".join(default) or "–"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Path):
        return str(default).replace(tempfile.gettempdir(), "/tmp")
    return f"{default:.10g}" if isinstance(default, float) else str(default)


# --- settings, codes, commands


def test_the_table_of_settings_is_the_settings() -> None:
    """Every variable with its default, once, and no other one."""
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|[^|]*\| ([^|]+) \|", OPERATIONS, re.M)
    expected = [(name.upper(), default_of(name)) for name in Settings.model_fields]
    assert sorted(rows) == sorted(expected)


def test_the_example_environment_has_every_setting() -> None:
    """What is commented out is the default; what is not is required."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(#?)([A-Z0-9_]+)=(.*)", line) for line in lines]
    given = {match[2].lower(): (match[1], match[3]) for match in found if match}
    assert given.keys() == Settings.model_fields.keys()
    for name, (comment, value) in given.items():
        if comment:
            assert value == default_of(name).replace("–", ""), name
    required = {name: value for name, (comment, value) in given.items() if not comment}
    settings = Settings(_env_file=None, **required)  # type: ignore[arg-type]
    assert settings.webhook_url == required["webhook_url"]


@pytest.mark.parametrize("code", [*ErrorCode, "webhook_refused", "webhook_undelivered"])
def test_every_code_has_a_row(code: str) -> None:
    """Codes of failures, and the reasons that only the dead-letter queue knows."""
    assert re.search(rf"^\| `{code}` \|", MESSAGES, re.M)


def test_no_code_is_made_up() -> None:
    """The table of error codes has no row that the code does not know."""
    rows = re.findall(r"^\| `([a-z_]+)` \|", section(MESSAGES, "Error codes"), re.M)
    assert sorted(rows) == sorted(ErrorCode)


def test_every_command_has_a_row() -> None:
    """Commands and those of `enqueue`; no other ones."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    names = {
        " ".join(filter(None, (name, sub)))
        for name, command in commands.items()
        for sub in getattr(command, "commands", {"": None})
    }
    rows = re.findall(r"^\| `waveflow ([a-z ]+)` \|", section(OPERATIONS, "Commands"), re.M)
    assert sorted(rows) == sorted(names)


# --- messages


@pytest.mark.parametrize("body", job_examples())
def test_every_job_in_the_document_is_understood(body: str) -> None:
    """Whoever copies an example gets a job."""
    job = parse(body, "message-id")
    assert not isinstance(job, RejectedJob), job


def test_all_shapes_say_the_same() -> None:
    """One hash job, written in each of the shapes."""
    jobs = [job for body in job_examples() if isinstance(job := parse(body, "m"), HashJob)]
    assert len(jobs) == 5
    assert all(job.model_copy(update={"job_id": 0}) == jobs[0].model_copy(update={"job_id": 0})
               for job in jobs)  # fmt: skip
    assert [job.job_id for job in jobs[1:3]] == ["m", "m"]


@pytest.mark.parametrize("kind", [HashJob, DuplicateJob, AnalysisJob, MixJob])
def test_the_tables_of_fields_are_the_fields(kind: type[Job]) -> None:
    """Name, position for Celery, and whether it is required."""
    _, _, text = section(MESSAGES, "Jobs").partition(f"\n`{kind.task}` (")
    table = text.split("\n\n")[1]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| [^|]+ \| (\*\*required)?", table, re.M)
    assert [name for _, name, _ in rows] == list(POSITIONAL[kind])
    assert [int(position) for position, _, _ in rows] == list(range(1, len(rows) + 1))
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    # `stems` and `stem_paths` stand in for each other.
    assert {name for _, name, mark in rows if mark} == required - {"job_id", "stems"}


def test_the_fields_of_a_mix_are_the_fields() -> None:
    """Every field that has no position, and every field of a stem, has a row, and its default."""
    stems, mix = re.findall(
        r"^\| field \| unit .*?(?=\n\n)", section(MESSAGES, "Mixes"), re.M | re.S
    )
    for table, kind, left_out in ((stems, StemSpec, set()), (mix, MixSpec, {"stems"})):
        rows = re.findall(r"^\| (`.+?) \| [^|]* \| ([^|]+) \|", table, re.M)
        names = [name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)]
        assert set(names) == kind.model_fields.keys() - left_out
        assert len(names) == len(set(names))
    by_name = section(MESSAGES, "Fields").partition("By name only")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(\w+)`", by_name))
    assert listed == MixSpec.model_fields.keys()


def test_the_facts_of_a_mix_are_the_facts(tmp_path: Path) -> None:
    """The table of `result`, its example and a real mix name the same fields in one order."""
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.int16), 8000)
    mixdown = mix_files(
        MixSpec(stems=(StemSpec(path=str(tmp_path / "a.wav")),)), tmp_path / "m.wav"
    )
    table = section(MESSAGES, "/mixing-complete").partition("`result` of a mix:")[2]
    rows = re.findall(r"^\| (`.+?) \|", table.partition("```")[0], re.M)
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    example = webhook_example(task_id=job_example(MixJob).job_id, status="SUCCESS")["result"]
    assert list(example) == names == list(mixdown.facts)
    assert list(example["stems"][0]) == list(mixdown.facts["stems"][0])


@pytest.mark.parametrize("kind", POSITIONAL)
def test_every_task_is_in_the_documents(kind: type[Job]) -> None:
    """By its full name, in the README's table too."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`{kind.task}`" in MESSAGES
    assert f"`{kind.task}`" in section(readme, "The contract")


# --- webhooks


def assert_same(example: dict[str, Any], webhook: Webhook | None) -> None:
    """Field for field, in order; what depends on the clock only by type."""
    assert webhook is not None
    sent = json.loads(webhook.body)
    assert list(example) == list(sent)
    for name, value in sent.items():
        if name in ON_THE_CLOCK:
            assert isinstance(example[name], type(value) if value is not None else type(None))
        else:
            assert example[name] == value, name


def test_the_hash_check_is_what_is_sent() -> None:
    example = webhook_example(status="hash_generated")
    result = {name: example[name] for name in ("audio_hash", "known_copies")}
    assert_same(example, success(job_example(HashJob), result, 0.1))


def test_the_completion_of_an_analysis_is_what_is_sent() -> None:
    job = job_example(AnalysisJob)
    blocks = json_blocks(section(MESSAGES, "Webhooks"))
    (example,) = [b for b in blocks if (b.get("result") or {}).get("audio_data_hash")]
    assert_same(example, success(job, example["result"], 0.159))
    assert isinstance(job, AnalysisJob)
    key = f"waveforms/{job.stemId}_waveform_{job.fingerprint[:16]}.json"
    assert example["audio_wave_path"] == key


def test_the_completion_of_a_duplicate_is_what_is_sent() -> None:
    example = webhook_example(result=None, status="SUCCESS")
    assert_same(example, success(job_example(DuplicateJob), {}, 0.1))


def test_the_failures_are_what_is_sent() -> None:
    blocks = json_blocks(section(MESSAGES, "Webhooks"))
    examples = [block for block in blocks if block.get("status") == "FAILURE"]
    jobs = [job_example(AnalysisJob), job_example(MixJob)]
    for example, job in zip(examples, jobs, strict=True):
        error = JobError(example["result"]["error_code"], example["result"]["error"])
        assert_same(example, failure(job, error, 0.012))


def test_the_mixing_complete_is_what_is_sent() -> None:
    job = job_example(MixJob)
    assert isinstance(job, MixJob)
    example = webhook_example(task_id=job.job_id, status="SUCCESS")
    names = ("mixed_file_path", "waveform_data_path", "result")
    assert_same(example, success(job, {name: example[name] for name in names}, 1.0))
    suffix = job.fingerprint[:16]
    assert example["mixed_file_path"] == f"mixed/{job.stageId}_mixed_{suffix}.wav"
    key = f"waveforms/{job.stageId}_mixed_waveform_{suffix}.json"
    assert example["waveform_data_path"] == key


def test_the_waveform_is_what_is_written() -> None:
    """Fields, order and types of the example and of its table."""
    text = (ROOT / "docs" / "waveform.md").read_text(encoding="utf-8")
    (example,) = json_blocks(text)
    waveform = Waveform(example["peaks"], 64.0, 44100, 4, 2, 2822400, False, 0.5)
    written = waveform_document(waveform, truncated=False)
    assert list(example) == list(written)
    assert example == written | {"created_at": example["created_at"]}
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == list(written)


# --- links


def anchors(text: str) -> set[str]:
    """Of all headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(document: Path) -> None:
    """Files and headings; addresses of the web are not asked."""
    text = (ROOT / document).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (ROOT / document).parent / path if path else ROOT / document
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text(encoding="utf-8")), target


# --- metrics


def test_the_table_of_metrics_is_the_metrics() -> None:
    """Name, kind, labels, unit and meaning, in the same order."""
    rows = re.findall(r"^\| `(waveflow_\w+)` \| (.+) \|$", section(OPERATIONS, "Metrics"), re.M)
    expected = []
    for metric in TABLE:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        about = f"{metric.kind} | {labels} | {metric.unit} | {metric.meaning}"
        expected.append((metric.name, about))
    assert rows == expected


def test_every_alert_has_a_row_that_says_what_to_do() -> None:
    """And each alert names the section where that stands."""
    alerts = [rule for rule in rules() if "alert" in rule]
    text = section(OPERATIONS, "Metrics").partition("### Alerts\n")[2]
    assert re.findall(r"^\| `(Waveflow\w+)` \|", text, re.M) == [rule["alert"] for rule in alerts]
    for rule in alerts:
        assert rule["annotations"].keys() == {"summary", "do", "runbook"}, rule["alert"]
        assert rule["annotations"]["runbook"] == "docs/operations.md#alerts"
        assert rule["labels"]["severity"] in ("warning", "critical")
