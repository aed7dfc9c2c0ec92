from __future__ import annotations

import base64
import json
import logging
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waveflow_ray.audio.spec import MixSpec, StemSpec
from waveflow_ray.errors import ErrorCode
from waveflow_ray.messages import (
    TASKS,
    AnalysisJob,
    CleanupJob,
    DuplicateJob,
    HashJob,
    HealthJob,
    Job,
    MixJob,
    RejectedJob,
    envelope,
    parse,
)
from waveflow_ray.outcomes import failed

HASH_TASK = "app.tasks.generate_hash_and_webhook"
DUPLICATE_TASK = "app.tasks.process_duplicate_file"
ANALYSIS_TASK = "app.tasks.process_audio_analysis"
MIX_TASK = "app.tasks.mix_stems_and_upload"
MIX = f'{{"task": "{MIX_TASK}"'  # the beginning of a message

JOBS: dict[str, tuple[type[Job], dict[str, Any]]] = {
    HASH_TASK: (
        HashJob,
        {
            "userId": "user-1",
            "trackId": "track-1",
            "stemId": "stem-1",
            "stageId": "stage-1",
            "filepath": "songs/드럼 1.wav",
            "timestamp": "2025-01-01T00:00:00.000Z",
            "original_filename": "드럼.wav",
        },
    ),
    DUPLICATE_TASK: (
        DuplicateJob,
        {
            "userId": "user-1",
            "trackId": "track-1",
            "stemId": "stem-1",
            "filepath": "songs/copy.wav",
            "audio_hash": "ab" * 32,
        },
    ),
    ANALYSIS_TASK: (
        AnalysisJob,
        {
            "userId": "user-1",
            "trackId": "track-1",
            "stemId": "stem-1",
            "filepath": "songs/a.wav",
            "audio_hash": "ab" * 32,
            "timestamp": "2025-01-01T00:00:00.000Z",
            "original_filename": "a.wav",
            "num_peaks": 2000,
            "upstreamId": "upstream-1",
        },
    ),
    MIX_TASK: (
        MixJob,
        {"stageId": "stage-1", "upstreamId": "upstream-1", "stem_paths": ["a.wav", "b.flac"]},
    ),
    "health_check": (HealthJob, {}),
    "cleanup_temp_files": (CleanupJob, {}),
    "app.tasks.health_check": (HealthJob, {}),
    "app.tasks.cleanup_temp_files": (CleanupJob, {}),
}
"""Every task, its model, and all its fields in the order of the Celery task's parameters."""


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def as_envelope(task: str, job_id: str, fields: dict[str, Any]) -> str:
    return json.dumps({"task": task, "id": job_id, "args": [], "kwargs": fields})


def as_flat(task: str, job_id: str, fields: dict[str, Any]) -> str:
    return json.dumps({"task": task, "id": job_id, **fields}, ensure_ascii=False)


def kombu(
    body: Any, headers: dict[str, Any], *, inner_base64: bool = True, outer_base64: bool = True
) -> str:
    """A transport message as kombu's SQS transport writes it, and its plainer variants."""
    text = json.dumps(body)
    message = {
        "body": base64_of(text) if inner_base64 else text,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": "celery-1",
            "reply_to": "9a1c",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "waveflow"},
            "priority": 0,
            "delivery_tag": "7c9e",
        }
        | ({"body_encoding": "base64"} if inner_base64 else {}),
    }
    text = json.dumps(message)
    return base64_of(text) if outer_base64 else text


def celery_1(task: str, job_id: str, args: list[Any], kwargs: dict[str, Any], **how: bool) -> str:
    body = {
        "task": task,
        "id": job_id,
        "args": args,
        "kwargs": kwargs,
        "retries": 0,
        "eta": None,
        "expires": None,
        "utc": True,
        "callbacks": None,
        "errbacks": None,
        "timelimit": [None, None],
        "taskset": None,
        "chord": None,
    }
    return kombu(body, {}, **how)


def celery_2(task: str, job_id: str, args: list[Any], kwargs: dict[str, Any], **how: bool) -> str:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers = {
        "lang": "py",
        "task": task,
        "id": job_id,
        "root_id": job_id,
        "parent_id": None,
        "argsrepr": repr(args),
        "kwargsrepr": repr(kwargs),
        "origin": "gen1@host",
        "retries": 0,
        "eta": None,
    }
    return kombu([args, kwargs, embed], headers, **how)


def rejected(body: str) -> RejectedJob:
    job = parse(body, "message-1")
    assert isinstance(job, RejectedJob)
    return job


@pytest.mark.parametrize("task", JOBS)
def test_every_task_is_understood_in_envelope_and_flat_shape(task: str) -> None:
    """The shapes of both NestJS servers give the same job, with every field as it was sent."""
    model, fields = JOBS[task]
    expected = model(job_id="id-1", **fields)
    assert parse(as_envelope(task, "id-1", fields), "message-1") == expected
    assert parse(as_flat(task, "id-1", fields), "message-1") == expected


def test_a_bare_message_is_a_hash_job() -> None:
    """Older servers send the fields of a hash job and nothing else."""
    fields = JOBS[HASH_TASK][1]
    assert parse(json.dumps(fields), "message-1") == HashJob(job_id="message-1", **fields)


@pytest.mark.parametrize("task", JOBS)
@pytest.mark.parametrize("protocol", [celery_1, celery_2])
def test_every_task_is_understood_from_celery_clients(protocol: Any, task: str) -> None:
    """Both protocols, arguments by name and by position, with and without either base64."""
    model, fields = JOBS[task]
    expected = model(job_id="celery-1", **fields)
    for inner_base64, outer_base64 in product([True, False], repeat=2):
        how = {"inner_base64": inner_base64, "outer_base64": outer_base64}
        assert parse(protocol(task, "celery-1", [], fields, **how), "message-1") == expected
        by_position = protocol(task, "celery-1", list(fields.values()), {}, **how)
        assert parse(by_position, "message-1") == expected


def test_an_unwrapped_celery_1_body_is_understood() -> None:
    """A protocol 1 task without kombu's transport message around it looks like an envelope."""
    fields = JOBS[ANALYSIS_TASK][1]
    body = {"task": ANALYSIS_TASK, "id": "celery-1", "args": [], "kwargs": fields, "retries": 0}
    expected = AnalysisJob(job_id="celery-1", **fields)
    assert parse(json.dumps(body), "message-1") == expected
    assert parse(base64_of(json.dumps(body)), "message-1") == expected


@pytest.mark.parametrize("task", [HASH_TASK, DUPLICATE_TASK, ANALYSIS_TASK, MIX_TASK])
@pytest.mark.parametrize("protocol", [celery_1, celery_2])
def test_positional_and_named_arguments_mix(protocol: Any, task: str) -> None:
    """Wherever a call is split into positional and named arguments, it is the same job."""
    model, fields = JOBS[task]
    items = list(fields.items())
    for split in range(len(items) + 1):
        args = [value for _, value in items[:split]]
        job = parse(protocol(task, "celery-1", args, dict(items[split:])), "message-1")
        assert job == model(job_id="celery-1", **fields)


def test_the_order_of_positional_arguments_is_the_celery_tasks() -> None:
    """Celery clients call by position, so the order is as much a contract as the names."""
    call = celery_2(ANALYSIS_TASK, "c", ["u", "t", "s", "f", "h", "ts", "name", 7, "up"], {})
    assert parse(call, "m") == AnalysisJob(
        job_id="c",
        userId="u",
        trackId="t",
        stemId="s",
        filepath="f",
        audio_hash="h",
        timestamp="ts",
        original_filename="name",
        num_peaks=7,
        upstreamId="up",
    )
    call = celery_2(HASH_TASK, "c", ["u", "t", "s", "g", "f", "ts", "name"], {})
    assert parse(call, "m") == HashJob(
        job_id="c",
        userId="u",
        trackId="t",
        stemId="s",
        stageId="g",
        filepath="f",
        timestamp="ts",
        original_filename="name",
    )
    call = celery_2(DUPLICATE_TASK, "c", ["u", "t", "s", "f", "h"], {})
    assert parse(call, "m") == DuplicateJob(
        job_id="c", userId="u", trackId="t", stemId="s", filepath="f", audio_hash="h"
    )
    call = celery_2(MIX_TASK, "c", ["g", "up", ["p"]], {})
    assert parse(call, "m") == MixJob(job_id="c", stageId="g", upstreamId="up", stem_paths=("p",))


@pytest.mark.parametrize("task", [HASH_TASK, DUPLICATE_TASK, ANALYSIS_TASK, MIX_TASK])
def test_null_means_absent(task: str) -> None:
    """Optional fields that are null are as if they were not there, by name and by position."""
    model, fields = JOBS[task]
    required = {k for k, f in model.model_fields.items() if f.is_required()} - {"job_id"}
    least = {k: v for k, v in fields.items() if k in required}
    nulls = {k: v if k in required else None for k, v in fields.items()}
    expected = model(job_id="id-1", **least)
    assert parse(as_envelope(task, "id-1", least), "m") == expected
    assert parse(as_envelope(task, "id-1", nulls), "m") == expected
    assert parse(celery_2(task, "id-1", list(nulls.values()), {}), "m") == expected
    assert parse(as_envelope(task, "id-1", nulls), "m").fingerprint == expected.fingerprint


@pytest.mark.parametrize("empty", [{"args": None, "kwargs": None}, {"args": [], "kwargs": {}}, {}])
def test_an_envelope_may_leave_args_and_kwargs_out(empty: dict[str, Any]) -> None:
    """Null, empty or missing: there are no arguments, and the fields beside them count."""
    body = {"task": None, "id": None, "stemId": "s", "filepath": "f"} | empty
    assert parse(json.dumps(body), "m") == HashJob(job_id="m", stemId="s", filepath="f")


def test_unknown_fields_are_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A newer server may send more than is known here; an engineer can see it at debug level."""
    fields = JOBS[HASH_TASK][1] | {"bitrate": 320, "job_id": "not-this-one"}
    with caplog.at_level(logging.DEBUG, "waveflow_ray.messages"):
        job = parse(as_envelope(HASH_TASK, "id-1", fields), "m")
    assert job == HashJob(job_id="id-1", **JOBS[HASH_TASK][1])
    assert "bitrate" in caplog.text


@pytest.mark.parametrize(
    ("given_id", "expected"),
    [
        ("hash-1", "hash-1"),
        (17, 17),
        (None, "message-1"),
        ("", "message-1"),
        (True, "message-1"),
        ([1], "message-1"),
    ],
)
def test_the_job_id_is_the_senders_or_the_message_id(given_id: Any, expected: Any) -> None:
    """The envelope's id comes back verbatim; without a usable one the SQS MessageId stands in."""
    fields = JOBS[MIX_TASK][1]
    for body in (
        json.dumps({"task": MIX_TASK, "id": given_id, "args": [], "kwargs": fields}),
        celery_1(MIX_TASK, given_id, [], fields),
        celery_2(MIX_TASK, given_id, [], fields),
    ):
        assert parse(body, "message-1").job_id == expected


def test_numbers_are_ids_too() -> None:
    """An id that was a number stays one: it goes back as it came."""
    job = parse(json.dumps({"stemId": 17, "filepath": "f", "userId": 3}), "m")
    assert isinstance(job, HashJob)
    assert (job.stemId, job.userId, job.subject) == (17, 3, "stem:17")


@pytest.mark.parametrize(
    ("body", "code", "part_of_reason"),
    [
        ("", ErrorCode.INVALID_MESSAGE, "cannot be read"),
        ("hello", ErrorCode.INVALID_MESSAGE, "cannot be read"),
        ("{", ErrorCode.INVALID_MESSAGE, "cannot be read"),
        ("[]", ErrorCode.INVALID_MESSAGE, "JSON object"),
        ('[{"stemId": "s"}]', ErrorCode.INVALID_MESSAGE, "JSON object"),
        ("null", ErrorCode.INVALID_MESSAGE, "JSON object"),
        ("17", ErrorCode.INVALID_MESSAGE, "JSON object"),
        ("e30=!", ErrorCode.INVALID_MESSAGE, "base64"),
        (base64_of("[1]"), ErrorCode.INVALID_MESSAGE, "JSON object"),
        (base64.b64encode(b"\xff\xfe").decode(), ErrorCode.INVALID_MESSAGE, "base64"),
        ('{"task": 5}', ErrorCode.INVALID_MESSAGE, "'task'"),
        ('{"task": "t", "args": "abc"}', ErrorCode.INVALID_MESSAGE, "'args'"),
        ('{"task": "t", "kwargs": []}', ErrorCode.INVALID_MESSAGE, "'kwargs'"),
        ('{"task": "app.tasks.dance"}', ErrorCode.UNKNOWN_TASK, "app.tasks.dance"),
        ('{"task": ""}', ErrorCode.UNKNOWN_TASK, "''"),
        ("{}", ErrorCode.INVALID_MESSAGE, "'stemId'"),
        ('{"filepath": "f"}', ErrorCode.INVALID_MESSAGE, "'stemId'"),
        ('{"stemId": "", "filepath": "f"}', ErrorCode.INVALID_MESSAGE, "'stemId"),
        ('{"stemId": null, "filepath": "f"}', ErrorCode.INVALID_MESSAGE, "'stemId'"),
        ('{"stemId": true, "filepath": "f"}', ErrorCode.INVALID_MESSAGE, "'stemId"),
        ('{"stemId": ["s"], "filepath": "f"}', ErrorCode.INVALID_MESSAGE, "'stemId"),
        ('{"stemId": "s"}', ErrorCode.INVALID_MESSAGE, "'filepath'"),
        ('{"stemId": "s", "filepath": ""}', ErrorCode.INVALID_MESSAGE, "'filepath'"),
        ('{"stemId": "s", "filepath": 5}', ErrorCode.INVALID_MESSAGE, "'filepath'"),
        (kombu("", {}), ErrorCode.INVALID_MESSAGE, "Celery body"),
        (kombu([[], {}, {}], {}), ErrorCode.INVALID_MESSAGE, "names no task"),
        (kombu([{}, []], {"task": "t"}), ErrorCode.INVALID_MESSAGE, "[args, kwargs, embed]"),
        (kombu([[]], {"task": "t"}), ErrorCode.INVALID_MESSAGE, "[args, kwargs, embed]"),
        ('{"headers": {}, "body": "{"}', ErrorCode.INVALID_MESSAGE, "cannot be read"),
        (
            '{"headers": {}, "body": "%%", "properties": {"body_encoding": "base64"}}',
            ErrorCode.INVALID_MESSAGE,
            "base64",
        ),
        (
            '{"headers": {}, "body": "gAJ9", "content-type": "application/x-python-serialize"}',
            ErrorCode.INVALID_MESSAGE,
            "application/x-python-serialize",
        ),
        (MIX + "}", ErrorCode.NO_STEMS, "no stems"),
        (MIX + ', "stem_paths": []}', ErrorCode.NO_STEMS, "no stems"),
        (MIX + ', "stem_paths": null}', ErrorCode.NO_STEMS, "no stems"),
        (MIX + ', "stem_paths": "a"}', ErrorCode.INVALID_MESSAGE, "'stem_paths"),
        (MIX + ', "stem_paths": [""]}', ErrorCode.INVALID_MESSAGE, "stem_paths"),
        (MIX + ', "stem_paths": [1]}', ErrorCode.INVALID_MESSAGE, "stem_paths"),
        (
            MIX + ', "stem_paths": ["a"], "stageId": ""}',
            ErrorCode.INVALID_MESSAGE,
            "'stageId",
        ),
        *(
            (f"{MIX}, {fields}}}", ErrorCode.INVALID_MESSAGE, part)
            for fields, part in [
                ('"stems": "a"', "'stems'"),
                ('"stems": ["a"]', "'stems.0'"),
                ('"stems": [{"gain_db": 1}]', "'stems.0.path': Field required"),
                ('"stems": [{"path": "a", "gain": 1}]', "'stems.0.gain'"),
                ('"stems": [{"path": "a", "pan": 1.01}]', "'stems.0.pan'"),
                ('"stems": [{"path": "a", "gain_db": "loud"}]', "'stems.0.gain_db'"),
                ('"stems": [{"path": "a", "gain_db": 21}]', "'stems.0.gain_db'"),
                ('"stems": [{"path": "a", "gain_db": 1' + "0" * 400 + "}]", "too large a number"),
                ('"stems": [{"path": "a", "fade_in_s": -1}]', "'stems.0.fade_in_s'"),
                ('"stems": [{"path": "a", "start_s": 4, "end_s": 4}]', "end_s 4 is not behind"),
                ('"stems": [{"path": "a", "mute": 1}]', "'stems.0.mute'"),
                ('"stems": [{"path": "a"}], "stem_paths": ["b"]', "stem_paths"),
                ('"stem_paths": ["a"], "normalization": "loud"', "'normalization'"),
                ('"stem_paths": ["a"], "target_lufs": -16', "for normalization 'loudness'"),
                ('"stem_paths": ["a"], "output_format": "aac"', "'output_format'"),
                ('"stem_paths": ["a"], "bit_depth": 20', "'bit_depth'"),
                ('"stem_paths": ["a"], "bit_depth": 32, "output_format": "flac"', "16 or 24"),
                ('"stem_paths": ["a"], "bit_depth": 16, "output_format": "mp3"', "not mp3"),
                ('"stem_paths": ["a"], "sample_rate": 50000, "output_format": "mp3"', "one of"),
                ('"stem_paths": ["a"], "sample_rate": 44100.5', "'sample_rate'"),
                ('"stem_paths": ["a"], "channels": 3', "'channels'"),
                ('"stem_paths": ["a"], "dither": "yes"', "'dither'"),
            ]
        ),
    ],
)
def test_what_cannot_be_done_is_rejected_with_code_and_reason(
    body: str, code: ErrorCode, part_of_reason: str
) -> None:
    """A rejected message says in its code and in one sentence what is wrong with it."""
    job = rejected(body)
    assert job.code is code
    assert part_of_reason in job.reason
    assert job.reason.endswith(".")
    assert job.error.code is code
    assert job.error.message == job.reason
    assert not job.error.retryable


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"stems": [{"path": "a", "pan": 2}]},
            "'stems.0.pan': Input should be less than or equal to 1",
        ),
        (
            {"stems": [{"path": "a"}, {"path": ""}]},
            "'stems.1.path': String should have at least 1 character",
        ),
        ({"stems": [{"pan": 0}]}, "'stems.0.path': Field required"),
        ({"stems": [], "stem_paths": ["a"]}, "'stems': empty"),
        ({"stem_paths": ["a", 1]}, "'stem_paths.1': Input should be a valid string"),
        (
            {"stems": [{"path": "a"}, {"path": "b"}], "stem_paths": ["b", "a"]},
            "stems and stem_paths do not name the same stems in the same order",
        ),
        (
            {"stems": [{"path": "a"}] * 513},
            "'stem_paths': Tuple should have at most 512 items after validation, not 513",
        ),
    ],
)
def test_one_mistake_is_told_in_one_sentence(fields: dict[str, Any], reason: str) -> None:
    """Without what follows from it."""
    job = rejected(as_envelope(MIX_TASK, "m-1", fields))
    assert job.reason == f"The message for {MIX_TASK} is not valid: {reason}."


@pytest.mark.parametrize("num_peaks", [0, -1, 100_001, "many", 1.5])
def test_a_number_of_peaks_that_makes_no_sense_is_rejected(num_peaks: Any) -> None:
    """num_peaks is 1 to 100,000; anything else is a mistake of the sender's, told at once."""
    fields = JOBS[ANALYSIS_TASK][1] | {"num_peaks": num_peaks}
    job = rejected(as_envelope(ANALYSIS_TASK, "id-1", fields))
    assert (job.code, job.job_id) == (ErrorCode.INVALID_MESSAGE, "id-1")
    assert "num_peaks" in job.reason


@pytest.mark.parametrize(
    ("body", "subject"),
    [
        ('{"stemId": "s"}', "stem:s"),
        ('{"stemId": 17}', "stem:17"),
        ('{"stemId": ""}', None),
        ('{"stemId": true}', None),
        ('{"stemId": 1.5}', None),
        ('{"stemId": {"a": 1}}', None),
        ('{"stageId": "g", "filepath": "f"}', None),
        ('{"task": "app.tasks.dance", "stemId": "s"}', "stem:s"),
        ('{"task": "app.tasks.dance", "stageId": "g", "stem_paths": []}', "stage:g"),
        ('{"task": "app.tasks.dance"}', None),
        (MIX + ', "stageId": "g"}', "stage:g"),
        (MIX + ', "stemId": "s"}', None),
        (MIX + ', "stageId": ""}', None),
        ("hello", None),
        (celery_2(HASH_TASK, "c", ["u", "t", "s"], {}), "stem:s"),
    ],
)
def test_a_rejection_is_reported_if_it_names_whom_it_is_about(
    body: str, subject: str | None
) -> None:
    """Only a usable stem or stage makes a rejection reportable; null or "" would hit another."""
    job = rejected(body)
    assert job.subject == subject
    webhook = failed(job, job.error).webhook
    assert (webhook.subject if webhook else None) == subject


def test_whitespace_around_the_body_is_no_matter() -> None:
    """People and tools add newlines at the end."""
    body = '{"stemId": "s", "filepath": "f"}'
    assert parse(f"\n {body}\n", "m") == parse(body, "m")
    assert parse(f"{base64_of(body)}\n", "m") == parse(body, "m")


def test_envelope_writes_what_parse_reads() -> None:
    """`waveflow enqueue` and the local server send the production server's shape."""
    for model, fields in JOBS.values():
        body = envelope(model, "id-1", **fields)
        assert parse(body, "m") == model(job_id="id-1", **fields)
        assert set(json.loads(body)) == {"task", "id", "args", "kwargs"}


def test_jobs_never_change() -> None:
    """A job is a value: what was parsed is what is done and reported."""
    job = parse('{"stemId": "s", "filepath": "f"}', "m")
    with pytest.raises(ValueError, match="frozen"):
        job.stemId = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", JOBS)
def test_the_same_job_sent_twice_has_one_fingerprint(task: str) -> None:
    """Another MessageId, another shape, another order of fields: still the same job."""
    _, fields = JOBS[task]
    turned = dict(reversed(fields.items()))
    jobs = [
        parse(as_envelope(task, "id-1", fields), "message-1"),
        parse(as_envelope(task, "id-1", turned), "message-2"),
        parse(as_flat(task, "id-1", fields | {"unknown": 1}), "message-3"),
        parse(celery_2(task, "id-1", [], fields), "message-4"),
    ]
    assert len({job.fingerprint for job in jobs}) == 1


def test_every_difference_makes_another_fingerprint() -> None:
    """Ids of mixes collide, so upstreamId and stem paths tell jobs apart, and so does all else."""
    bodies = [as_envelope(MIX_TASK, "id-2", JOBS[MIX_TASK][1])]
    for task in (HASH_TASK, DUPLICATE_TASK, ANALYSIS_TASK, MIX_TASK):
        fields = JOBS[task][1]
        bodies.append(as_envelope(task, "id-1", fields))
        for name, value in fields.items():
            other = {list: ["b.flac", "a.wav"], int: 1}.get(type(value), "other")
            bodies.append(as_envelope(task, "id-1", fields | {name: other}))
    fingerprints = {parse(body, "m").fingerprint for body in bodies}
    assert len(fingerprints) == len(bodies)


def test_stems_are_stem_paths_with_more() -> None:
    """A mix by either field is the same job; whatever is beside a path makes it another."""
    paths = {"stageId": "st", "stem_paths": ["a.wav", "b.wav"]}
    stems: dict[str, Any] = {"stageId": "st", "stems": [{"path": "a.wav"}, {"path": "b.wav"}]}
    louder = {"stageId": "st", "stems": [{"path": "a.wav", "gain_db": 1}, {"path": "b.wav"}]}
    jobs = [
        parse(as_envelope(MIX_TASK, "m-1", fields), "message")
        for fields in (paths, stems, stems | paths, louder, louder | paths)
    ]
    assert all(isinstance(job, MixJob) for job in jobs)
    assert len({job.fingerprint for job in jobs[:3]}) == 1
    assert jobs[3].fingerprint == jobs[4].fingerprint != jobs[0].fingerprint
    assert {job.stem_paths for job in jobs} == {("a.wav", "b.wav")}  # type: ignore[attr-defined]


def test_the_keys_of_old_mixes_stay() -> None:
    """What the service derived from a message before mixes had more fields."""
    job = parse(as_envelope(MIX_TASK, "m-1", {"stageId": "st", "stem_paths": ["a.wav"]}), "m")
    assert job.fingerprint.startswith("1019905e8c05ea91")


def test_wishes_that_are_the_default_are_no_other_job() -> None:
    """Spelled out or left out, 3 or 3.0; every other wish makes another job, and other keys."""

    def fingerprint(**fields: Any) -> str:
        job = parse(as_envelope(MIX_TASK, "m-1", {"stems": [{"path": "a"}]} | fields), "m")
        assert isinstance(job, MixJob)
        return job.fingerprint

    spelled = {"normalization": "average", "output_format": "wav", "dither": False}
    assert fingerprint() == fingerprint(**spelled, channels=None)
    assert fingerprint() == fingerprint(stems=[{"path": "a", "pan": 0, "solo": False}])
    gains = [fingerprint(stems=[{"path": "a", "gain_db": gain}]) for gain in (3, 3.0, 4)]
    assert gains[0] == gains[1] != gains[2]
    wishes: list[dict[str, Any]] = [
        {"normalization": "none"},
        {"normalization": "peak", "target_peak_dbfs": -2},
        {"normalization": "loudness", "target_lufs": -16},
        {"normalization": "loudness", "true_peak_dbtp": -2},
        {"output_format": "flac"},
        {"bit_depth": 24},
        {"dither": True},
        {"sample_rate": 48_000},
        {"channels": 1},
    ]
    times = ("offset_s", "start_s", "end_s", "fade_in_s", "fade_out_s")
    of_stems = {"gain_db": 1, "pan": 1, "mute": True, "solo": True} | dict.fromkeys(times, 1)
    assert {"path", *of_stems} == set(StemSpec.model_fields)
    wishes += [{"stems": [{"path": "a", name: value}]} for name, value in of_stems.items()]
    assert {name for wish in wishes for name in wish} == set(MixSpec.model_fields)
    assert len({fingerprint(), *(fingerprint(**wish) for wish in wishes)}) == 1 + len(wishes)


def test_messages_without_an_id_are_jobs_of_their_own() -> None:
    """Without a sender's id two messages are two jobs: nobody said that they are one."""
    body = '{"stemId": "s", "filepath": "f"}'
    assert parse(body, "m1").fingerprint != parse(body, "m2").fingerprint
    assert parse(body, "m1").fingerprint == parse(body, "m1").fingerprint


def check(body: str) -> None:
    """What holds for any text: a job comes out, and it can be told apart, logged and reported."""
    job = parse(body, "message-1")
    assert isinstance(job, Job)
    assert len(job.fingerprint) == 64
    assert isinstance(job.ids, dict)
    error = job.error if isinstance(job, RejectedJob) else RejectedJob(
        job_id="x", code=ErrorCode.INVALID_MESSAGE, reason="x"
    ).error  # fmt: skip
    webhook = failed(job, error).webhook
    if webhook is not None:
        payload = json.loads(webhook.body, parse_constant=pytest.fail)
        named = payload["stageId" if webhook.path == "/mixing-complete" else "stemId"]
        assert named not in (None, "")
        assert len(webhook.body) < 100_000 or len(body) > 50_000


characters = st.characters()  # surrogates too: JSON can escape half of a pair
ids = st.one_of(st.none(), st.just(""), st.integers(), st.text(characters, max_size=5))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(characters, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
names = st.sampled_from(
    ["stemId", "stageId", "filepath", "userId", "stem_paths", "num_peaks", "audio_hash", "odd"]
)
fields_ = st.dictionaries(names, ids | values, max_size=6)
tasks = st.sampled_from([*TASKS, None, "app.tasks.dance"])
messages = st.one_of(
    values,
    st.fixed_dictionaries({"task": tasks | values, "id": ids, "args": values, "kwargs": fields_}),
    st.builds(lambda task, fields: {"task": task} | fields, tasks, fields_),
    st.fixed_dictionaries({"headers": values, "body": values, "properties": values}),
    st.builds(
        lambda task, job_id, args, kwargs: {
            "headers": {"task": task, "id": job_id},
            "body": json.dumps([args, kwargs, {}]),
        },
        tasks,
        ids,
        st.lists(values, max_size=10),
        fields_,
    ),
)


@given(st.text(characters))
def test_no_text_makes_the_parser_raise(body: str) -> None:
    """Whatever somebody sends, it ends as a job or as a rejection, never as an exception."""
    check(body)


@given(messages, st.booleans())
def test_no_json_makes_the_parser_raise(message: Any, wrapped: bool) -> None:
    """Every kind of value in every place of every shape, plain and as base64."""
    body = json.dumps(message)
    check(base64_of(body) if wrapped else body)


DEEP = "[" * 300 + "]" * 300
VERY_DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"a": ' + VERY_DEEP, id="envelope"),
        pytest.param(json.dumps({"headers": {}, "body": VERY_DEEP}), id="Celery body"),
        pytest.param(
            json.dumps({"headers": {}, "body": '{"a": ' + "[" * 950 + "]" * 950 + "}"}),
            id="Celery 1 body",
        ),
        pytest.param('{"stemId": "s", "filepath": "f", "userId": ' + DEEP + "}", id="field"),
        pytest.param('{"stemId": "s", "userId": ' + DEEP + "}", id="field of a rejection"),
        pytest.param('{"task": "app.tasks.dance", "x": ' + DEEP + "}", id="unknown task"),
    ],
)
def test_deep_nesting_is_survived(body: str) -> None:
    """A message that nests too deeply for some library is rejected, not a crash of the ingress."""
    check(body)


@pytest.mark.parametrize(
    "body",
    [
        '{"stemId": "\\ud800", "filepath": "f"}',
        '{"stemId": "s", "filepath": "\\ud800"}',
        '{"stemId": "s", "filepath": "f", "userId": "\\ud800"}',
        '{"stemId": "s", "filepath": "f", "original_filename": "\\udfff.wav"}',
        MIX + ', "id": "\\ud800", "stageId": "g", "stem_paths": ["a"]}',
        '{"task": "\\ud800", "stemId": "s", "\\ud800": 1}',
    ],
)
def test_text_that_is_no_unicode_is_survived(body: str) -> None:
    """JSON can spell half a surrogate pair, which no webhook could carry."""
    check(body)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([10**400, -(10**400), 2**63, -0.0, 1e308, "", "a", [], {}, [None], [{}]]),
    st.integers(-100, 100_000),
    st.floats(-100, 100),
)


@given(
    st.dictionaries(st.sampled_from(sorted(MixSpec.model_fields)), ODD, max_size=4),
    st.lists(st.dictionaries(st.sampled_from([*StemSpec.model_fields, "x"]), ODD), max_size=2),
)
def test_no_wish_for_a_mix_makes_the_parser_raise(
    fields: dict[str, Any], stems: list[dict[str, Any]]
) -> None:
    """Numbers that no float can hold among them."""
    check(as_envelope(MIX_TASK, "m-1", {"stems": stems} | fields))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_know_are_rejected(number: str) -> None:
    """Python reads and writes NaN, nobody else does: the main server would refuse the webhook."""
    job = rejected('{"stemId": "s", "filepath": "f", "userId": ' + number + "}")
    assert job.code is ErrorCode.INVALID_MESSAGE


def test_a_long_task_name_does_not_make_a_long_webhook() -> None:
    """The main server takes 100 kB at most, so a rejection does not quote without end."""
    job = rejected(json.dumps({"task": "x" * 150_000, "stemId": "s"}))
    webhook = failed(job, job.error).webhook
    assert webhook is not None
    assert len(webhook.body) < 10_000
