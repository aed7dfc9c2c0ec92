"""Jobs as they arrive: every message shape in use, turned into one typed `Job`.

`parse` never raises. A message that cannot be understood becomes a `RejectedJob` with the
reason and with whatever ids it names, so that the failure can be reported.
The wire format is documented in docs/messages.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from waveflow_ray.audio.spec import Key, MixSpec, StemSpec, not_empty
from waveflow_ray.errors import ErrorCode, JobError

logger = logging.getLogger(__name__)

MAX_DEPTH = 20
MAX_STEMS = 512
"""All their keys go back in one webhook, of which the main server takes 100 kB."""
MAX_QUOTE = 100

Id = Annotated[StrictStr, Field(min_length=1)] | StrictInt
"""An id of the main server's. Never null or empty: the server would act on another record."""


Kind = Literal["hash", "duplicate", "analysis", "mix", "health", "cleanup", "rejected"]


class Job(BaseModel):
    """One unit of work. Fields carry the names they have on the wire.

    `job_id` is the sender's id, or the SQS MessageId where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ClassVar[Kind]
    task: ClassVar[str]

    job_id: str | int

    @property
    def subject(self) -> str | None:
        """What the webhooks of this job are about; one at a time goes out for each subject."""
        return None

    @property
    def ids(self) -> dict[str, Any]:
        """The ids that a person would search the logs for."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the task, the id and the fields: equal for the same job sent twice."""
        content = [self.task, self.content]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def content(self) -> dict[str, Any]:
        """The fields that make this job another than the next, as JSON values."""
        return self.model_dump(mode="json")


class StemJob(Job):
    """What hash, duplicate and analysis jobs have in common."""

    stemId: Id  # noqa: N815 - the wire's name
    filepath: Key
    userId: Any = None  # noqa: N815 - the wire's name
    trackId: Any = None  # noqa: N815 - the wire's name

    @property
    def subject(self) -> str:
        return f"stem:{self.stemId}"

    @property
    def ids(self) -> dict[str, Any]:
        return {"stemId": self.stemId, "filepath": self.filepath}


class HashJob(StemJob):
    """Tell the SHA-256 of an uploaded file."""

    kind = "hash"
    task = "app.tasks.generate_hash_and_webhook"

    stageId: Any = None  # noqa: N815 - the wire's name
    timestamp: Any = None
    original_filename: Any = None


class DuplicateJob(StemJob):
    """Delete a file that the main server knows to be a copy."""

    kind = "duplicate"
    task = "app.tasks.process_duplicate_file"

    audio_hash: StrictStr | None = None


class AnalysisJob(StemJob):
    """Compute the waveform of a stem."""

    kind = "analysis"
    task = "app.tasks.process_audio_analysis"

    audio_hash: StrictStr | None = None
    timestamp: Any = None
    original_filename: Any = None
    num_peaks: Annotated[int, Field(ge=1, le=100_000)] | None = None
    upstreamId: Any = None  # noqa: N815 - the wire's name


class MixJob(MixSpec, Job):
    """Mix the stems of a stage into one file.

    The stems are named by `stem_paths`, or by `stems` with how each is to sound; whichever is
    missing is filled in from the other.
    """

    kind = "mix"
    task = "app.tasks.mix_stems_and_upload"

    stem_paths: Annotated[tuple[Key, ...], Field(max_length=MAX_STEMS), AfterValidator(not_empty)]
    stageId: Id | None = None  # noqa: N815 - the wire's name
    upstreamId: Any = None  # noqa: N815 - the wire's name

    @model_validator(mode="before")
    @classmethod
    def _stems_by_either_name(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            if "stems" not in fields and isinstance(fields.get("stem_paths"), list | tuple):
                stems = [{"path": path} for path in fields["stem_paths"]]
                return fields | {"stems": stems}
            if "stem_paths" not in fields:
                return fields | {"stem_paths": stem_paths_of(fields)}
        return fields

    @model_validator(mode="after")
    def _same_stems_by_both_names(self) -> Self:
        if tuple(stem.path for stem in self.stems) != self.stem_paths:
            raise ValueError("stems and stem_paths do not name the same stems in the same order")
        return self

    @property
    def subject(self) -> str | None:
        return None if self.stageId is None else f"stage:{self.stageId}"

    @property
    def ids(self) -> dict[str, Any]:
        return {"stageId": self.stageId, "stems": len(self.stem_paths)}

    @property
    def content(self) -> dict[str, Any]:
        """What came later counts where it is used: older messages keep their fingerprint."""
        fields = super().content
        defaults = MixSpec(stems=tuple(StemSpec(path=path) for path in self.stem_paths))
        for name, default in defaults.model_dump(mode="json").items():
            if fields[name] == default:
                del fields[name]
        return fields


class HealthJob(Job):
    """Look after everything the service depends on."""

    kind = "health"
    task = "health_check"


class CleanupJob(Job):
    """Sweep the scratch folders."""

    kind = "cleanup"
    task = "cleanup_temp_files"


class RejectedJob(Job):
    """A message that cannot be done, and why. `fields` is what could be read of it."""

    kind = "rejected"
    task = "rejected"

    code: ErrorCode
    reason: str
    fields: dict[str, Any] = {}
    about_mix: bool = False

    @property
    def stem_id(self) -> str | int | None:
        """The stem that the failure can be reported about."""
        return None if self.about_mix else _usable_id(self.fields.get("stemId"))

    @property
    def stage_id(self) -> str | int | None:
        """The stage that the failure can be reported about."""
        return _usable_id(self.fields.get("stageId")) if self.about_mix else None

    @property
    def subject(self) -> str | None:
        if self.stem_id is not None:
            return f"stem:{self.stem_id}"
        return None if self.stage_id is None else f"stage:{self.stage_id}"

    @property
    def ids(self) -> dict[str, Any]:
        return {k: v for k, v in self.fields.items() if k in ("stemId", "stageId", "filepath")}

    @property
    def error(self) -> JobError:
        """The reason as the error that is reported."""
        return JobError(self.code, self.reason)


POSITIONAL: dict[type[Job], tuple[str, ...]] = {
    HashJob: (
        "userId", "trackId", "stemId", "stageId", "filepath", "timestamp", "original_filename",
    ),
    DuplicateJob: ("userId", "trackId", "stemId", "filepath", "audio_hash"),
    AnalysisJob: (
        "userId", "trackId", "stemId", "filepath", "audio_hash", "timestamp",
        "original_filename", "num_peaks", "upstreamId",
    ),
    MixJob: ("stageId", "upstreamId", "stem_paths"),
    HealthJob: (),
    CleanupJob: (),
}  # fmt: skip
"""The order of positional arguments, as the Celery tasks declared them."""

TASKS: dict[str, type[Job]] = {job.task: job for job in POSITIONAL} | {
    f"app.tasks.{job.task}": job for job in (HealthJob, CleanupJob)
}


@dataclass(frozen=True)
class Call:
    """A message taken out of its wrapping: which task, by which id, with which arguments."""

    task: str | None
    job_id: str | int | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    args: list[Any] = field(default_factory=list)


def parse(body: str, message_id: str) -> Job:
    """The job that an SQS message body asks for.

    Args:
        body: the message body: envelope, flat, bare or Celery shape, plain or base64.
        message_id: the SQS MessageId, the job's id where the sender gave none.
    """
    try:
        call = unwrap(body)
    except ValueError as error:
        return RejectedJob(
            job_id=message_id,
            code=ErrorCode.INVALID_MESSAGE,
            reason=f"The message cannot be read: {error}.",
        )
    job_id = call.job_id if call.job_id not in (None, "") else message_id
    model = HashJob if call.task is None else TASKS.get(call.task)
    fields = _without_nulls(call.kwargs)
    if model is None:
        return RejectedJob(
            job_id=job_id,
            code=ErrorCode.UNKNOWN_TASK,
            reason=f"There is no task named {_quoted(call.task)}.",
            fields=fields,
            about_mix="stem_paths" in fields or "stems" in fields,
        )
    fields = _without_nulls(dict(zip(POSITIONAL[model], call.args, strict=False))) | fields
    unknown = fields.keys() - model.model_fields.keys()
    if unknown:
        logger.debug("fields of job %s that mean nothing here: %s", job_id, sorted(unknown))
    try:
        return model.model_validate(fields | {"job_id": job_id})
    except ValidationError as error:
        code, reason = _explain(model, fields, error)
        return RejectedJob(
            job_id=job_id, code=code, reason=reason, fields=fields, about_mix=model is MixJob
        )


def envelope(model: type[Job], job_id: str, **fields: Any) -> str:
    """A message body in the envelope shape, as the main server writes it."""
    message = {"task": model.task, "id": job_id, "args": [], "kwargs": fields}
    return json.dumps(message, ensure_ascii=False)


def unwrap(body: str) -> Call:
    """Tell the message shapes apart.

    Raises:
        ValueError: not JSON, or JSON of no known shape; the text says what is wrong.
    """
    text = body.strip()
    message = _loads(text if text.startswith("{") else _from_base64(text))
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return _told_apart(message)


def _told_apart(message: dict[str, Any]) -> Call:
    if isinstance(message.get("body"), str | list) and isinstance(message.get("headers"), dict):
        return _unwrap_kombu(message)
    task = message.get("task")
    if task is not None and not isinstance(task, str):
        raise ValueError("'task' is not text")
    kwargs = message.get("kwargs")
    args = message.get("args")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError("'kwargs' is not an object")
    if args is not None and not isinstance(args, list):
        raise ValueError("'args' is not a list")
    flat = {k: v for k, v in message.items() if k not in ("task", "id", "args", "kwargs")}
    return Call(task, _job_id(message.get("id")), flat | (kwargs or {}), args or [])


def _unwrap_kombu(message: dict[str, Any]) -> Call:
    """Celery's task inside kombu's transport message, protocol 1 or 2."""
    properties = message.get("properties") or {}
    headers = message["headers"]
    content_type = message.get("content-type", "application/json")
    if content_type != "application/json":
        raise ValueError(f"Celery content type {_quoted(content_type)} is not application/json")
    content = message["body"]
    if isinstance(content, str):
        if isinstance(properties, dict) and properties.get("body_encoding") == "base64":
            content = _from_base64(content)
        content = _loads(content)
    if isinstance(content, list):  # protocol 2: [args, kwargs, embed], the rest in the headers
        if len(content) < 2 or not isinstance(content[0], list) or not isinstance(content[1], dict):
            raise ValueError("a Celery 2 body is not [args, kwargs, embed]")
        if not isinstance(headers.get("task"), str):
            raise ValueError("a Celery 2 message names no task in its headers")
        return Call(headers["task"], _job_id(headers.get("id")), content[1], content[0])
    if isinstance(content, dict):  # protocol 1
        return _told_apart(content)
    raise ValueError("a Celery body is neither an object nor a list")


def _loads(text: str) -> Any:
    """JSON as the standard has it: no NaN, no half characters, nesting with a limit.

    What comes in goes out again in a webhook, and has to survive every library between.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it has text that is not Unicode") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _from_base64(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("neither a JSON object nor base64 of one") from None


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}…"


def _job_id(value: Any) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _usable_id(value: Any) -> str | int | None:
    return None if value == "" else _job_id(value)


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def stem_paths_of(fields: dict[str, Any]) -> list[Any]:
    """The keys that a mix message names, by whichever field, as far as they can be read."""
    paths = fields.get("stem_paths")
    if isinstance(paths, list | tuple):
        return list(paths)
    stems = fields.get("stems")
    if not isinstance(stems, list):
        return []
    return [stem.get("path") for stem in stems if isinstance(stem, dict)]


def _explain(
    model: type[Job], fields: dict[str, Any], error: ValidationError
) -> tuple[ErrorCode, str]:
    if model is MixJob and not fields.get("stem_paths") and not fields.get("stems"):
        return (
            ErrorCode.NO_STEMS,
            "There are no stems to mix: 'stem_paths' and 'stems' are missing or empty.",
        )
    found = error.errors()
    # Of stems and paths, the one that was filled in from the other has its faults.
    filled_in = {"stems", "stem_paths"} - fields.keys()
    own = [item for item in found if not filled_in.intersection(item["loc"][:1])]
    problems = "; ".join(
        # A problem of several fields together has no place of its own.
        (f"'{'.'.join(str(part) for part in item['loc'][:3])}': " if item["loc"] else "")
        + item["msg"].removeprefix("Value error, ")
        for item in (own or found)[:3]
    )
    return ErrorCode.INVALID_MESSAGE, f"The message for {model.task} is not valid: {problems}."
