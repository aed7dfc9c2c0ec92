from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from waveflow_ray import errors
from waveflow_ray.errors import RETRYABLE, ConfigurationError, ErrorCode, JobError

MESSAGES_MD = Path(__file__).parents[2] / "docs" / "messages.md"


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_survives_pickling(code: ErrorCode) -> None:
    """Errors arise in worker processes and are reported by another one."""
    error = JobError(code, "The file is too large.", "songs/a.wav: 200 MB")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, JobError)
    assert (copy.code, copy.message, copy.detail) == (error.code, error.message, error.detail)
    assert copy.code is code
    assert copy.retryable == error.retryable
    assert str(copy) == str(error)


def test_a_configuration_error_survives_pickling() -> None:
    """Its text is all there is to it."""
    copy = pickle.loads(pickle.dumps(ConfigurationError("MAX_RETRIES=x: not a number")))
    assert str(copy) == "MAX_RETRIES=x: not a number"


def test_only_faults_that_may_pass_are_tried_again() -> None:
    """What is wrong with a file or a message stays wrong, and a person is waiting."""
    assert {"storage_unavailable", "internal_error"} == RETRYABLE
    for code in ErrorCode:
        assert JobError(code, "x").retryable == (code in RETRYABLE)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_reported_failure_is_final(code: ErrorCode) -> None:
    """The server is told four fields; retryable is false because all retries were made."""
    assert JobError(code, "A sentence.", "for engineers").as_result() == {
        "error": "A sentence.",
        "error_message": "A sentence.",
        "error_code": code.value,
        "retryable": False,
    }


def test_a_code_may_be_given_as_text() -> None:
    """Codes come back from the wire as text; what is no code is a mistake of the programmer's."""
    assert JobError("timeout", "x").code is ErrorCode.TIMEOUT  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dance"):
        JobError("dance", "x")  # type: ignore[arg-type]


def test_the_text_of_an_error_has_what_an_engineer_needs() -> None:
    """Code, sentence and detail in logs and in the dead-letter queue."""
    assert str(JobError(ErrorCode.TIMEOUT, "Too slow.")) == "timeout: Too slow."
    assert str(JobError(ErrorCode.TIMEOUT, "Too slow.", "900 s")) == "timeout: Too slow. (900 s)"


def test_codes_are_stable_identifiers() -> None:
    """Clients branch on these; a code may be added, never renamed."""
    assert set(ErrorCode) >= {
        "file_too_large",
        "unsupported_media_type",
        "undecodable_audio",
        "truncated_audio",
        "object_not_found",
        "hash_mismatch",
        "protected_object",
        "no_stems",
        "timeout",
        "worker_crashed",
        "invalid_message",
        "unknown_task",
        "storage_unavailable",
        "internal_error",
    }
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in ErrorCode)


def test_the_tree_in_the_module_names_every_code() -> None:
    """The drawing at the top of errors.py is how people find their way; it must not drift."""
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(ErrorCode)


@pytest.mark.skipif(not MESSAGES_MD.exists(), reason="docs/messages.md is not written yet")
@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_is_documented(code: ErrorCode) -> None:
    """Who receives a code can look up what it means."""
    assert f"`{code}`" in MESSAGES_MD.read_text(encoding="utf-8")
