"""Every kind of job against a real S3 server: what it writes, reports and how it fails."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import soundfile as sf

from tests.functional.test_wire import faulty
from tests.proxy import Fault
from tests.support import World, encoded, music
from waveflow_ray.aws.wire import Body
from waveflow_ray.jobs import perform
from waveflow_ray.jobs.work import Work
from waveflow_ray.local.verify import mix_difference, peaks_difference
from waveflow_ray.messages import AnalysisJob, CleanupJob, DuplicateJob, HashJob, HealthJob, MixJob
from waveflow_ray.outcomes import Outcome
from waveflow_ray.settings import Settings

TOLERANCE = 1e-4


def payload(outcome: Outcome) -> dict[str, Any]:
    assert outcome.webhook is not None
    body: dict[str, Any] = json.loads(outcome.webhook.body)
    return body


def error_code(outcome: Outcome) -> str:
    assert outcome.status == "FAILURE"
    code: str = payload(outcome)["result"]["error_code"]
    return code


def stored_json(world: World, key: str) -> dict[str, Any]:
    body = world.bucket.client.get_object(Bucket=world.bucket.name, Key=key)["Body"].read()
    document: dict[str, Any] = json.loads(body)
    return document


def hash_job(key: str) -> HashJob:
    return HashJob(job_id="h", stemId="s", filepath=key)


def analysis_job(key: str, **more: Any) -> AnalysisJob:
    return AnalysisJob(job_id="a", stemId="s", filepath=key, **more)


@pytest.mark.parametrize("size", [0, 1, 5_000_001])
def test_a_hash_is_of_the_raw_bytes(world: World, settings: Settings, size: int) -> None:
    """Any object has a hash, an empty one too."""
    data = os.urandom(size)
    world.bucket.put("f/hash.bin", data, "x")
    outcome = perform(hash_job("f/hash.bin"), settings)
    assert payload(outcome)["audio_hash"] == hashlib.sha256(data).hexdigest()
    assert outcome.usage.bytes_in == size


def test_a_missing_object_is_reported_as_such(settings: Settings) -> None:
    """Each kind of job that reads an object says object_not_found; only deleting is content."""
    assert error_code(perform(hash_job("f/none.wav"), settings)) == "object_not_found"
    assert error_code(perform(analysis_job("f/none.wav"), settings)) == "object_not_found"
    mix = MixJob(job_id="m", stageId="st", stem_paths=("f/none.wav",))
    outcome = perform(mix, settings)
    assert error_code(outcome) == "object_not_found"
    assert "none.wav" in payload(outcome)["result"]["error_message"]
    for given in (None, "0" * 64):
        gone = DuplicateJob(job_id="d", stemId="s", filepath="f/none.wav", audio_hash=given)
        assert perform(gone, settings).status == "SUCCESS"


def test_a_storage_that_is_away_can_be_tried_again(settings: Settings) -> None:
    """No answer from S3 is a transient fault."""
    nowhere = settings.model_copy(update={"aws_endpoint_url": "http://127.0.0.1:9"})
    outcome = perform(hash_job("f/any.wav"), nowhere)
    assert outcome.error is not None
    assert outcome.error.code == "storage_unavailable"
    assert outcome.error.retryable


def test_only_the_right_bytes_are_deleted(world: World, settings: Settings) -> None:
    """A duplicate with another hash stays; so does anything the service itself wrote."""
    data = os.urandom(1000)
    right = hashlib.sha256(data).hexdigest()
    world.bucket.put("f/copy.wav", data, "x")
    wrong = DuplicateJob(job_id="d", stemId="s", filepath="f/copy.wav", audio_hash="0" * 64)
    assert error_code(perform(wrong, settings)) == "hash_mismatch"
    assert world.bucket.exists("f/copy.wav")
    for key in ("waveforms/x.json", "mixed/x.wav"):
        world.bucket.put(key, data, "x")
        ours = DuplicateJob(job_id="d", stemId="s", filepath=key, audio_hash=right)
        assert error_code(perform(ours, settings)) == "protected_object"
        assert world.bucket.exists(key)
    world.bucket.put("f/other.wav", data, "x")
    perform(hash_job("f/other.wav"), settings)
    good = DuplicateJob(job_id="d", stemId="s", filepath="f/copy.wav", audio_hash=right)
    assert perform(good, settings).status == "SUCCESS"
    assert not world.bucket.exists("f/copy.wav")


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        ("wav", {"subtype": "PCM_16"}),
        ("wav", {"subtype": "PCM_24"}),
        ("wav", {"subtype": "FLOAT"}),
        ("flac", {"format": "FLAC"}),
        ("ogg", {"format": "OGG"}),
        ("mp3", {"format": "MP3"}),
        ("aiff", {"format": "AIFF"}),
    ],
)
def test_a_waveform_is_what_numpy_says(
    world: World, settings: Settings, tmp_path: Path, suffix: str, how: dict[str, Any]
) -> None:
    """The stored waveform equals one computed from the whole file, within 1e-4."""
    path = tmp_path / f"stem.{suffix}"
    path.write_bytes(encoded(music(3.3, 48000), 48000, **how))
    world.bucket.put("f/stem", path.read_bytes(), "x")
    outcome = perform(analysis_job("f/stem", num_peaks=777), settings)
    result = payload(outcome)["result"]
    document = stored_json(world, result["waveform_data_path"])
    assert peaks_difference(path, document["peaks"]) <= TOLERANCE
    assert len(document["peaks"]) == document["num_peaks"] == result["num_peaks"] == 777
    assert document["sample_rate"] == result["sample_rate"] == 48000
    assert document["duration"] == result["duration"] == pytest.approx(sf.info(path).duration)
    assert result["file_size"] == path.stat().st_size
    assert result["audio_data_hash"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(settings.scratch_dir.iterdir()) == []


def test_an_analysis_done_twice_writes_the_same_key(world: World, settings: Settings) -> None:
    """The key is derived from the job, and safe whatever the id looks like."""
    world.bucket.put("f/twice.wav", encoded(music(0.5)), "x")
    job = AnalysisJob(job_id="a", stemId="../../x y", filepath="f/twice.wav")
    keys = {payload(perform(job, settings))["audio_wave_path"] for _ in range(2)}
    assert len(keys) == 1
    key = keys.pop()
    assert key.startswith("waveforms/..%2F..%2Fx%20y_waveform_")
    assert world.bucket.exists(key)


@pytest.mark.parametrize(
    ("data", "changes", "code"),
    [
        (b"words, not sound " * 100, {}, "unsupported_media_type"),
        (b"", {}, "unsupported_media_type"),
        (encoded(music(1.0)), {"allowed_mime_types": ("audio/flac",)}, "unsupported_media_type"),
        (encoded(music(8.0)), {"max_file_size_mb": 1}, "file_too_large"),
        (encoded(music(1.0))[:44], {}, "undecodable_audio"),
    ],
    ids=["text", "empty", "not allowed", "too large", "header only"],
)
def test_what_cannot_be_analysed_is_a_permanent_failure(
    world: World, settings: Settings, data: bytes, changes: dict[str, Any], code: str
) -> None:
    """Each has its own code, and none is tried again."""
    world.bucket.put("f/bad", data, "x")
    outcome = perform(analysis_job("f/bad"), settings.model_copy(update=changes))
    assert error_code(outcome) == code
    assert outcome.error is not None
    assert not outcome.error.retryable


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("fault", ["cut", "flip"])
def test_a_file_that_comes_broken_is_analysed_anew(
    world: World, settings: Settings, fault: Fault, suffix: str
) -> None:
    """From its start: nothing of the first attempt is left in the waveform."""
    data = encoded(music(20.0), format=suffix.upper())
    world.bucket.put("f/broken", data, "x")
    expected = payload(perform(analysis_job("f/broken"), settings))["result"]
    before = stored_json(world, expected["waveform_data_path"])
    with faulty(world, fault) as (bucket, asked):
        outcome = perform(analysis_job("f/broken"), settings, work=Work(settings, bucket))
    assert payload(outcome)["result"] == expected
    assert len(asked) == 3, "two downloads, one upload"
    after = stored_json(world, expected["waveform_data_path"])
    assert before | {"created_at": ""} == after | {"created_at": ""}


def test_a_file_of_the_wrong_kind_is_not_read_to_its_end(world: World, settings: Settings) -> None:
    """Its first bytes say it all."""
    world.bucket.put("f/video", b"\x1a\x45\xdf\xa3" + bytes(9_000_000), "x")
    taken = 0
    work = Work(settings)
    read = Body.iter_chunks

    def counted(body: Body, size: int) -> Iterator[bytes]:
        nonlocal taken
        for chunk in read(body, size):
            taken += len(chunk)
            yield chunk

    with patch.object(Body, "iter_chunks", counted):
        outcome = perform(analysis_job("f/video"), settings, work=work)
    assert error_code(outcome) == "unsupported_media_type"
    assert 0 < taken < 4_000_000


def test_aliases_of_content_types_are_allowed_types(world: World, settings: Settings) -> None:
    """audio/x-flac in the setting means audio/flac."""
    world.bucket.put("f/alias", encoded(music(0.5), format="FLAC"), "x")
    only = settings.model_copy(update={"allowed_mime_types": ("audio/x-flac",)})
    assert perform(analysis_job("f/alias"), only).status == "SUCCESS"


def test_a_file_that_breaks_off_gives_the_waveform_of_what_is_there(
    world: World, settings: Settings
) -> None:
    """Analysis succeeds and says so; a mix of it fails and names the stem."""
    whole = encoded(music(2.0))
    world.bucket.put("f/cut.wav", whole[: len(whole) // 2], "x")
    world.bucket.put("f/whole.wav", whole, "x")
    result = payload(perform(analysis_job("f/cut.wav"), settings))["result"]
    assert result["duration"] == pytest.approx(1.0, abs=0.01)
    assert stored_json(world, result["waveform_data_path"])["truncated"] is True
    mix = MixJob(job_id="m", stageId="st", stem_paths=("f/whole.wav", "f/cut.wav"))
    outcome = perform(mix, settings)
    assert error_code(outcome) == "truncated_audio"
    assert "'cut.wav'" in payload(outcome)["result"]["error"]


@pytest.mark.parametrize("parallelism", [1, 2, 5])
def test_a_mix_is_what_numpy_says(
    world: World, settings: Settings, tmp_path: Path, parallelism: int
) -> None:
    """Rates, channels, formats and lengths mixed; the same samples however it is shared out."""
    sources = {
        "a.wav": encoded(music(2.0, seed=1)),
        "b.flac": encoded(music(3.1, 48000, seed=2), 48000, format="FLAC"),
        "c.mp3": encoded(music(1.5, channels=1, seed=3), format="MP3"),
        "d.ogg": encoded(music(2.5, seed=4), format="OGG"),
    }
    for name, data in sources.items():
        (tmp_path / name).write_bytes(data)
        world.bucket.put(f"f/{name}", data, "x")
    keys = tuple(f"f/{name}" for name in sources)
    job = MixJob(job_id="m", stageId="st", upstreamId="u", stem_paths=keys)
    outcome = perform(job, settings, parallelism=parallelism)
    report = payload(outcome)
    mixed = tmp_path / "mix.wav"
    world.bucket.client.download_file(world.bucket.name, report["mixed_file_path"], str(mixed))
    assert mix_difference([tmp_path / name for name in sources], mixed) <= TOLERANCE
    info = sf.info(mixed)
    assert (info.samplerate, info.channels, info.subtype) == (48000, 2, "PCM_16")
    waveform = stored_json(world, report["waveform_data_path"])
    assert peaks_difference(mixed, waveform["peaks"]) <= TOLERANCE
    assert waveform["num_peaks"] == 4000
    samples, _ = sf.read(mixed, dtype="int16")
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    assert digest == _mix_digests.setdefault("mix", digest)


_mix_digests: dict[str, str] = {}


def test_mono_stems_make_a_mono_mix(world: World, settings: Settings) -> None:
    """Stereo only if any stem is; a stem may be in a mix twice."""
    world.bucket.put("f/mono.wav", encoded(0.25 * np.ones((1000, 1))), "x")
    job = MixJob(job_id="m", stageId="st", stem_paths=("f/mono.wav", "f/mono.wav"))
    report = payload(perform(job, settings))
    assert report["stem_count"] == 2
    body = world.bucket.client.get_object(Bucket=world.bucket.name, Key=report["mixed_file_path"])
    samples, _ = sf.read(io.BytesIO(body["Body"].read()), dtype="int16")
    assert samples.shape == (1000,)
    assert np.all(samples == 8192)


def test_a_stem_that_is_no_audio_fails_the_mix_and_leaves_nothing(
    world: World, settings: Settings
) -> None:
    """Nothing is left out, and nothing half done is left behind."""
    world.bucket.put("f/ok.wav", encoded(music(0.5)), "x")
    world.bucket.put("f/words.wav", b"words " * 500, "x")
    job = MixJob(job_id="m", stageId="fails", stem_paths=("f/ok.wav", "f/words.wav"))
    outcome = perform(job, settings)
    assert error_code(outcome) == "unsupported_media_type"
    assert "words.wav" in payload(outcome)["result"]["error"]
    assert not world.puts("mixed/fails_")
    assert list(settings.scratch_dir.iterdir()) == []


def test_a_mix_finds_headers_behind_a_large_tag(world: World, settings: Settings) -> None:
    """An MP3 whose ID3 tag holds a picture larger than the probe is mixed all the same."""
    mp3 = encoded(music(1.0), format="MP3")
    size = 400_000
    tag = b"ID3\x04\x00\x00" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    world.bucket.put("f/tagged.mp3", tag + bytes(size) + mp3, "x")
    job = MixJob(job_id="m", stageId="st", stem_paths=("f/tagged.mp3",))
    assert perform(job, settings).status == "SUCCESS"


def test_a_mix_without_a_stage_is_written_and_not_reported(
    world: World, settings: Settings
) -> None:
    """A null stageId would make the main server act on some other record."""
    world.bucket.put("f/one.wav", encoded(music(0.3)), "x")
    outcome = perform(MixJob(job_id="nostage", stem_paths=("f/one.wav",)), settings)
    assert outcome.status == "SUCCESS"
    assert outcome.webhook is None
    assert world.puts("mixed/none_mixed_")


def test_a_job_that_takes_too_long_is_ended(world: World, settings: Settings) -> None:
    """The time limit ends the work in mid-decode, with a code of its own."""
    world.bucket.put("f/long.flac", encoded(music(60.0), format="FLAC"), "x")
    impatient = settings.model_copy(update={"job_timeout_s": 0.001})
    with warnings.catch_warnings():
        # It may come between the opening of a connection and whoever would close it.
        warnings.simplefilter("ignore", ResourceWarning)
        assert error_code(perform(analysis_job("f/long.flac"), impatient)) == "timeout"
        gc.collect()
    assert list(settings.scratch_dir.iterdir()) == []


HANGS = """
import signal, sys, time
from waveflow_ray.jobs import work
work.HARD_STOP_GRACE_S = 0.2
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as if in C: no exception comes
with work.time_limit(0.1, hard=True):
    time.sleep(60)
"""


def test_a_worker_that_hangs_beyond_its_limit_ends_itself() -> None:
    """Code that no exception reaches is ended with its process, and the log says where it was."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode != 0
    assert "Timeout" in done.stderr


def test_health_tells_what_is_wrong(settings: Settings) -> None:
    """S3 and SQS answer, the main server does not."""
    outcome = perform(HealthJob(job_id="h"), settings)
    checks = {check["name"]: check["ok"] for check in outcome.notes["checks"]}
    assert checks == {"s3": True, "sqs": True, "webhook": False}
    assert outcome.notes["ok"] is False
    assert outcome.webhook is None


def test_cleanup_removes_old_files_of_the_scratch_folder_only(settings: Settings) -> None:
    """Young files stay: a job may be using them."""
    settings.scratch_dir.mkdir()
    old, young = settings.scratch_dir / "old", settings.scratch_dir / "young"
    outside = settings.scratch_dir.parent / "outside"
    for path in (old, young, outside):
        path.write_bytes(b"x")
    for path in (old, outside):
        os.utime(path, (0, 0))
    outcome = perform(CleanupJob(job_id="c"), settings)
    assert outcome.notes == {"removed": [str(old)]}
    assert young.exists()
    assert outside.exists()
