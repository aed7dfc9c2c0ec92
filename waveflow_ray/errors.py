"""Everything that can go wrong with a job, as one flat tree.

    JobError                      a sentence for the musician, a code for the engineer
    ├── file_too_large            ┐
    ├── unsupported_media_type    │
    ├── undecodable_audio         │
    ├── truncated_audio           │ permanent: reported at once,
    ├── object_not_found          │ the message is deleted
    ├── hash_mismatch             │
    ├── last_known_copy           │
    ├── protected_object          │
    ├── timeout                   │
    ├── worker_crashed            ┘
    ├── invalid_message           ┐
    ├── unknown_task              │ permanent: reported if a stem or stage is named,
    ├── no_stems                  ┘ and kept in the dead-letter queue
    ├── storage_unavailable       ┐ transient: tried again through SQS visibility,
    └── internal_error            ┘ then reported and kept in the dead-letter queue

There is one exception class, not one per code: nothing in this service branches on the
type of a failure, only on its code and on whether trying again can help.
Foreign exceptions are mapped once, where they arise: `aws/` maps boto3's, `audio/` maps
libsndfile's, `jobs.perform` maps the rest to ``internal_error``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Stable identifiers that cross the wire as ``error_code``; docs/messages.md lists them."""

    FILE_TOO_LARGE = "file_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNDECODABLE_AUDIO = "undecodable_audio"
    TRUNCATED_AUDIO = "truncated_audio"
    OBJECT_NOT_FOUND = "object_not_found"
    HASH_MISMATCH = "hash_mismatch"
    LAST_KNOWN_COPY = "last_known_copy"
    PROTECTED_OBJECT = "protected_object"
    NO_STEMS = "no_stems"
    TIMEOUT = "timeout"
    WORKER_CRASHED = "worker_crashed"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_TASK = "unknown_task"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    INTERNAL_ERROR = "internal_error"


RETRYABLE = frozenset({ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.INTERNAL_ERROR})
"""Codes of faults that may be gone at the next attempt."""


class JobError(Exception):
    """A job ended badly.

    Args:
        code: what happened, for programs.
        message: one sentence that a musician understands; sent to the main server.
        detail: what an engineer needs beside it (key, cause); logged, never sent.
    """

    def __init__(self, code: ErrorCode, message: str, detail: str = "") -> None:
        super().__init__(code, message, detail)
        self.code = ErrorCode(code)
        self.message = message
        self.detail = detail

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed later without anybody changing anything."""
        return self.code in RETRYABLE

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.detail})" if self.detail else "")

    def as_result(self) -> dict[str, Any]:
        """The ``result`` object of a FAILURE webhook. Once reported a failure is final."""
        return {
            "error": self.message,
            "error_message": self.message,
            "error_code": str(self.code),
            "retryable": False,
        }


def internal_error(detail: str) -> JobError:
    """A fault of ours, or of what we run on; `detail` is for the engineer."""
    message = "Something went wrong on our side; please try again."
    return JobError(ErrorCode.INTERNAL_ERROR, message, detail)


class ConfigurationError(Exception):
    """A setting is missing or wrong; the text names the variable, its value and what is allowed."""
