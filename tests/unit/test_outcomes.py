from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.unit.fakes import HASH, analysis_job, hash_job, mix_job, result_of
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.messages import (
    CleanupJob,
    DuplicateJob,
    HealthJob,
    Job,
    MixJob,
    RejectedJob,
    parse,
)
from waveflow_ray.outcomes import Outcome, Usage, Webhook, failed, failure, success, utc_now

UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
ERROR = JobError(ErrorCode.UNDECODABLE_AUDIO, "The file is not audio.", "libsndfile: 7")
RESULT = {
    "error": "The file is not audio.",
    "error_message": "The file is not audio.",
    "error_code": "undecodable_audio",
    "retryable": False,
}


def duplicate_job(**fields: Any) -> DuplicateJob:
    given = {"job_id": "dup-1", "stemId": "stem-1", "filepath": "songs/copy.wav"}
    return DuplicateJob(**(given | fields))


def payload_of(webhook: Webhook | None) -> dict[str, Any]:
    assert webhook is not None
    payload: dict[str, Any] = json.loads(webhook.body)
    return payload


def without_time(payload: dict[str, Any], name: str) -> dict[str, Any]:
    """The payload without the time of completion, which has to be now, as the wire has it."""
    text = payload.pop(name)
    assert UTC_TIME.fullmatch(text)
    age = datetime.now(UTC) - datetime.fromisoformat(text)
    assert timedelta(0) <= age < timedelta(minutes=10)
    return payload


def test_hash_check_has_every_field_of_the_contract() -> None:
    """Ids, timestamp and file name of a hash job come back verbatim, the hash beside them."""
    job = hash_job(
        userId="user-1",
        trackId=7,
        stageId="stage-1",
        filepath="songs/드럼.wav",
        timestamp="2025-01-01T09:00:00+09:00",
        original_filename="드럼 (1).wav",
    )
    webhook = success(job, {"audio_hash": HASH, "known_copies": []}, 1.0)
    assert webhook is not None
    assert (webhook.path, webhook.subject, webhook.status) == (
        "/hash-check",
        "stem:stem-1",
        "SUCCESS",
    )
    assert payload_of(webhook) == {
        "stemId": "stem-1",
        "userId": "user-1",
        "trackId": 7,
        "stageId": "stage-1",
        "filepath": "songs/드럼.wav",
        "audio_hash": HASH,
        "timestamp": "2025-01-01T09:00:00+09:00",
        "original_filename": "드럼 (1).wav",
        "status": "hash_generated",
        "known_copies": [],
    }


def test_completion_of_an_analysis_has_every_field_of_the_contract() -> None:
    """The server reads the key from audio_wave_path and the rest from result."""
    job = analysis_job(
        userId="user-1", trackId="track-1", upstreamId="up-1", original_filename="a.wav"
    )
    webhook = success(job, result_of(job), 1.23456)
    assert webhook is not None
    assert (webhook.path, webhook.subject, webhook.status) == (
        "/completion",
        "stem:stem-1",
        "SUCCESS",
    )
    assert without_time(payload_of(webhook), "timestamp") == {
        "stemId": "stem-1",
        "userId": "user-1",
        "trackId": "track-1",
        "upstreamId": "up-1",
        "status": "SUCCESS",
        "result": {
            "audio_data_hash": HASH,
            "waveform_data_path": "waveforms/w.json",
            "file_size": 1000,
            "duration": 2.5,
            "sample_rate": 44100,
            "num_peaks": 4000,
        },
        "original_filename": "a.wav",
        "processing_time": 1.235,
        "audio_wave_path": "waveforms/w.json",
    }


def test_completion_of_a_duplicate_has_nulls_where_nothing_was_computed() -> None:
    """After a copy was deleted there is no result, no key and no processing time to tell."""
    webhook = success(duplicate_job(userId="user-1", trackId="track-1"), {}, 3.0)
    assert webhook is not None
    assert (webhook.path, webhook.subject) == ("/completion", "stem:stem-1")
    assert without_time(payload_of(webhook), "timestamp") == {
        "stemId": "stem-1",
        "userId": "user-1",
        "trackId": "track-1",
        "upstreamId": None,
        "status": "SUCCESS",
        "result": None,
        "original_filename": "copy.wav",
        "processing_time": None,
        "audio_wave_path": None,
    }


def test_mixing_complete_has_every_field_of_the_contract() -> None:
    """The server is told both keys, the stems as they were named, and the job id as task_id."""
    job = mix_job("mixing-stage-1-17", upstreamId="up-1")
    webhook = success(job, result_of(job), 1.0)
    assert webhook is not None
    assert (webhook.path, webhook.subject, webhook.status) == (
        "/mixing-complete",
        "stage:stage-1",
        "SUCCESS",
    )
    assert without_time(payload_of(webhook), "processed_at") == {
        "stageId": "stage-1",
        "upstreamId": "up-1",
        "status": "SUCCESS",
        "mixed_file_path": "mixed/m.wav",
        "waveform_data_path": "waveforms/m.json",
        "stem_count": 2,
        "stem_paths": ["a.wav", "b.wav"],
        "task_id": "mixing-stage-1-17",
    }


@pytest.mark.parametrize("job", [hash_job(), analysis_job(), duplicate_job()], ids=lambda j: j.kind)
def test_a_failed_stem_job_is_told_to_completion(job: Job) -> None:
    """Also a hash job's failure goes to /completion: /hash-check knows no failures."""
    webhook = failure(job, ERROR, 0.5)
    assert webhook is not None
    assert (webhook.path, webhook.subject, webhook.status) == (
        "/completion",
        "stem:stem-1",
        "FAILURE",
    )
    assert without_time(payload_of(webhook), "timestamp") == {
        "stemId": "stem-1",
        "userId": None,
        "trackId": None,
        "upstreamId": None,
        "status": "FAILURE",
        "result": RESULT,
        "original_filename": "copy.wav" if job.kind == "duplicate" else "a.wav",
        "processing_time": 0.5,
        "audio_wave_path": None,
    }


def test_a_failed_mix_is_told_to_mixing_complete() -> None:
    """A stage that waits for its mix is told why there is none."""
    webhook = failure(mix_job(upstreamId="up-1"), ERROR, 0.5)
    assert webhook is not None
    assert (webhook.path, webhook.subject, webhook.status) == (
        "/mixing-complete",
        "stage:stage-1",
        "FAILURE",
    )
    assert without_time(payload_of(webhook), "processed_at") == {
        "stageId": "stage-1",
        "upstreamId": "up-1",
        "status": "FAILURE",
        "mixed_file_path": None,
        "waveform_data_path": None,
        "stem_count": 2,
        "stem_paths": ["a.wav", "b.wav"],
        "task_id": "mix-1",
        "result": RESULT,
    }


def test_a_rejected_stem_message_gives_back_what_it_named() -> None:
    """A malformed message is reported with the ids that could be read of it."""
    body = {
        "task": "app.tasks.process_audio_analysis",
        "stemId": "stem-1",
        "userId": "user-1",
        "trackId": "track-1",
        "upstreamId": "up-1",
        "filepath": "songs/a.wav",
        "num_peaks": 0,
    }
    job = parse(json.dumps(body), "m")
    assert isinstance(job, RejectedJob)
    payload = without_time(payload_of(failed(job, job.error).webhook), "timestamp")
    result = payload.pop("result")
    assert payload == {
        "stemId": "stem-1",
        "userId": "user-1",
        "trackId": "track-1",
        "upstreamId": "up-1",
        "status": "FAILURE",
        "original_filename": "a.wav",
        "processing_time": 0,
        "audio_wave_path": None,
    }
    assert result["error"] == result["error_message"] == job.reason
    assert (result["error_code"], result["retryable"]) == ("invalid_message", False)


def test_a_rejected_mix_message_gives_back_what_it_named() -> None:
    """A mix without stems is told to its stage, with the id of the job."""
    body = {"task": "app.tasks.mix_stems_and_upload", "id": "mix-1", "stageId": "stage-1"}
    job = parse(json.dumps(body), "m")
    assert isinstance(job, RejectedJob)
    payload = without_time(payload_of(failed(job, job.error).webhook), "processed_at")
    assert payload.pop("result")["error_code"] == "no_stems"
    assert payload == {
        "stageId": "stage-1",
        "upstreamId": None,
        "status": "FAILURE",
        "mixed_file_path": None,
        "waveform_data_path": None,
        "stem_count": 0,
        "stem_paths": [],
        "task_id": "mix-1",
    }


def test_what_was_not_given_is_null() -> None:
    """The server branches on null; "" and "None" would make it look up such an id."""
    payload = payload_of(success(hash_job(), {"audio_hash": HASH, "known_copies": []}, 1.0))
    assert [payload[k] for k in ("userId", "trackId", "stageId", "timestamp")] == [None] * 4
    payload = payload_of(success(analysis_job(), result_of(analysis_job()), 1.0))
    assert [payload[k] for k in ("userId", "trackId", "upstreamId")] == [None] * 3
    payload = payload_of(success(mix_job(), result_of(mix_job()), 1.0))
    assert payload["upstreamId"] is None


@pytest.mark.parametrize(
    ("given", "filepath", "expected"),
    [
        ("drums.wav", "songs/a.wav", "drums.wav"),
        (None, "songs/2025/a.wav", "a.wav"),
        (None, "a.wav", "a.wav"),
        (None, "songs/a.wav/", "a.wav"),
        (None, "songs/킥 드럼.wav", "킥 드럼.wav"),
        (None, "/", "stem-1"),
    ],
)
def test_the_last_segment_of_filepath_stands_in_for_the_file_name(
    given: str | None, filepath: str, expected: str
) -> None:
    """A null original_filename would cost the stem its record on the main server."""
    fields: dict[str, Any] = {"original_filename": given, "filepath": filepath}
    for webhook in (
        success(hash_job(**fields), {"audio_hash": HASH, "known_copies": []}, 1.0),
        success(analysis_job(**fields), result_of(analysis_job()), 1.0),
        failure(hash_job(**fields), ERROR, 1.0),
    ):
        assert payload_of(webhook)["original_filename"] == expected


def test_a_mix_without_a_stage_reports_nothing() -> None:
    """A null stageId would make the server act on an arbitrary stage, well or not."""
    job = mix_job(stageId=None)
    assert success(job, result_of(job), 1.0) is None
    assert failure(job, ERROR, 1.0) is None
    assert failed(job, ERROR).webhook is None


@pytest.mark.parametrize(
    "body",
    [
        "hello",
        "{}",
        '{"stemId": null, "filepath": "f"}',
        '{"stemId": "", "filepath": "f"}',
        '{"stemId": {}, "filepath": "f"}',
        '{"stageId": "g", "filepath": "f"}',
        '{"task": "app.tasks.mix_stems_and_upload", "stemId": "s"}',
        '{"task": "app.tasks.mix_stems_and_upload", "stageId": "", "stem_paths": []}',
        '{"task": "app.tasks.mix_stems_and_upload", "stageId": false, "stem_paths": []}',
        '{"task": "app.tasks.dance"}',
    ],
)
def test_a_rejection_that_names_nobody_is_not_reported(body: str) -> None:
    """No webhook ever carries a null or empty stemId or stageId."""
    job = parse(body, "m")
    assert isinstance(job, RejectedJob)
    outcome = failed(job, job.error)
    assert outcome.webhook is None
    assert (outcome.status, outcome.error and outcome.error.code) == ("FAILURE", job.code)


@pytest.mark.parametrize("job", [HealthJob(job_id="h"), CleanupJob(job_id="c")])
def test_maintenance_is_nobodys_business(job: Job) -> None:
    """Maintenance tasks are about no stem and no stage, so nobody is told."""
    assert success(job, {}, 1.0) is None
    assert failure(job, ERROR, 1.0) is None


def test_the_processing_time_of_a_failure_is_the_sum_of_its_stages() -> None:
    """An engineer sees how long it took until it failed."""
    outcome = failed(analysis_job(), ERROR, Usage(seconds={"download": 1.5, "work": 0.25}))
    assert payload_of(outcome.webhook)["processing_time"] == 1.75
    assert outcome.status == "FAILURE"
    assert outcome.error is ERROR


def test_a_webhook_is_identified_by_its_job() -> None:
    """The same job done twice, in whatever process, sends the same webhook-id."""
    first = success(analysis_job(), result_of(analysis_job()), 1.0)
    again = success(analysis_job(), result_of(analysis_job()), 99.0)
    other = success(analysis_job("analysis-2"), result_of(analysis_job()), 1.0)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.id == again.id
    assert first.id != other.id
    assert re.fullmatch(r"msg_[0-9a-zA-Z_-]{16,}", first.id)


def test_a_webhook_id_survives_the_queue() -> None:
    """After a restart the job is parsed again, from another shape perhaps: the id is the same."""
    job = mix_job("mixing-1", upstreamId="up-1")
    fields = {"stem_paths": ["a.wav", "b.wav"], "upstreamId": "up-1", "stageId": "stage-1"}
    again = parse(json.dumps({"task": MixJob.task, "id": "mixing-1", **fields}), "m")
    first, second = success(job, result_of(job), 1.0), success(again, result_of(job), 1.0)
    assert first is not None
    assert second is not None
    assert first.id == second.id


@pytest.mark.parametrize("job", [hash_job(), analysis_job(), mix_job()], ids=lambda j: j.kind)
def test_failure_and_success_of_one_job_are_two_events(job: Job) -> None:
    """A job replayed from the dead-letter queue may go well; its success is no repetition.

    A receiver, and the reporter itself, leaves out what has a webhook-id that it has seen.
    """
    went_well, went_badly = success(job, result_of(job), 1.0), failure(job, ERROR, 1.0)
    assert went_well is not None
    assert went_badly is not None
    assert went_well.id != went_badly.id


def test_payloads_are_utf8_json_without_escapes() -> None:
    """Names in any script travel as they are, in few bytes."""
    webhook = success(
        hash_job(original_filename="드럼.wav"), {"audio_hash": HASH, "known_copies": []}, 1.0
    )
    assert webhook is not None
    assert "드럼.wav".encode() in webhook.body
    assert b'": ' not in webhook.body


def test_outcomes_cross_processes() -> None:
    """An outcome is made in a worker process and reported by another."""
    job = analysis_job()
    outcomes = [
        failed(job, ERROR, Usage(seconds={"work": 1.0}, bytes_in=5, node="n")),
        Outcome("SUCCESS", success(job, result_of(job), 1.0), notes={"layout": "grid"}),
    ]
    for outcome in outcomes:
        copy = pickle.loads(pickle.dumps(outcome))
        assert copy.webhook == outcome.webhook
        assert copy.usage == outcome.usage
        assert copy.notes == outcome.notes
        assert repr(copy.error) == repr(outcome.error)


def test_the_time_on_the_wire_is_utc_with_microseconds() -> None:
    """ISO 8601 with microseconds and Z."""
    assert UTC_TIME.fullmatch(utc_now())
