"""The one place that reads the environment.

`Settings` is frozen and travels with the jobs, so that every node of a cluster works by the
same values. Names, units, defaults and meanings are listed in docs/operations.md; a test
keeps the two in step.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    HttpUrl,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from waveflow_ray.errors import ConfigurationError

S = TypeVar("S", bound=BaseSettings)

SECRET_PREFIX = "whsec_"
SECRETS = ("WEBHOOK_SECRET", "WEBHOOK_TOKEN")
DEFAULT_MIME_TYPES = ("audio/wav", "audio/flac", "audio/ogg", "audio/mpeg", "audio/aiff")


class Secrets(BaseSettings):
    """What is known to those only who post webhooks, each from its own environment."""

    model_config = SettingsConfigDict(
        env_file=".env", frozen=True, extra="ignore", env_ignore_empty=True
    )

    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks as Standard Webhooks does: `whsec_` and 24 to 64 bytes in "
        "base64. Several, separated by spaces, while secrets are rotated.",
    )
    webhook_token: SecretStr | None = Field(
        None, description="Sent with every webhook as `Authorization: Bearer …`."
    )

    @field_validator("webhook_secret")
    @classmethod
    def _readable_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            signing_keys(value.get_secret_value())
        return value

    @field_validator("webhook_token")
    @classmethod
    def _one_word(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("a token is one word of ASCII characters")
        return value

    @property
    def variables(self) -> dict[str, str]:
        """The secrets that are set, by the variables they come from."""
        found = ((name, getattr(self, name.lower())) for name in SECRETS)
        return {name: value.get_secret_value() for name, value in found if value is not None}

    @property
    def fingerprint(self) -> str:
        """Tells whether two processes know the same secrets, and too little to find them by."""
        return hashlib.sha256(repr(sorted(self.variables.items())).encode()).hexdigest()[:8]


class Settings(Secrets):
    """What the service needs to know, from the environment and a ``.env`` file.

    Field names are the environment variables in lower case. Times end in ``_s`` and are
    seconds, sizes say their unit.
    """

    aws_region: str = Field("ap-northeast-2", description="Region of the bucket and the queue.")
    aws_endpoint_url: str | None = Field(
        None, description="Sends all AWS requests there instead of to AWS (moto, an emulator)."
    )
    s3_bucket_name: str = Field(
        min_length=3, description="The bucket with the originals and the results."
    )
    sqs_queue_url: str | None = Field(None, description="The job queue.")
    sqs_queue_name: str | None = Field(
        None, description="Name of the job queue, where its URL is not given."
    )
    sqs_dlq_url: str | None = Field(
        None, description="The dead-letter queue; by default the one in the redrive policy."
    )
    webhook_url: str = Field(
        description="Base address of the main server; the three webhook paths are appended."
    )
    webhook_timeout_s: float = Field(
        30.0, gt=0, le=300, description="Longest wait for the answer to one webhook."
    )
    webhook_give_up_s: float = Field(
        600.0,
        gt=0,
        le=36_000,
        description="A webhook that the server answers with an error for so long is kept in the "
        "dead-letter queue. While the server cannot be reached at all, webhooks wait longer.",
    )
    webhook_pause_s: float = Field(
        1.0, gt=0, le=300, description="First pause before a webhook is repeated; it doubles."
    )
    webhook_max_pause_s: float = Field(
        15.0, gt=0, le=3600, description="Longest pause before a webhook is repeated."
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="Least severe level that is logged."
    )
    log_format: str = Field(
        "text",
        description="`text` (one readable line), `json` (one object a line), or a format string "
        "of Python's logging as the Celery worker took it.",
    )

    max_file_size_mb: int = Field(
        100, ge=1, le=1_000_000, description="Largest file that is analysed or mixed, in MiB."
    )
    allowed_mime_types: Annotated[tuple[str, ...], NoDecode] = Field(
        DEFAULT_MIME_TYPES,
        description="Content types that are analysed and mixed, comma-separated or a JSON list; "
        "aliases such as audio/x-flac count as the type they mean.",
    )
    default_waveform_peaks: int = Field(
        4000, ge=1, le=100_000, description="Peaks of a waveform where the message names no number."
    )
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="Longest audio that is decoded.")
    max_channels: int = Field(8, ge=1, le=8, description="Most channels of a file.")
    min_sample_rate: int = Field(
        8_000, ge=8_000, le=192_000, description="Lowest sample rate of a file, in Hz."
    )
    max_sample_rate: int = Field(
        192_000, ge=8_000, le=192_000, description="Highest sample rate of a file, in Hz."
    )
    max_stems: int = Field(128, ge=1, le=512, description="Most stems of a mix.")
    max_num_peaks: int = Field(
        100_000, ge=1, le=100_000, description="Most peaks that a message may ask for."
    )
    allowed_key_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Where uploads are: other keys are refused. Comma-separated or a JSON list; "
        "none allows all.",
    )
    job_memory_mb: int = Field(
        2048,
        ge=512,
        le=1_000_000,
        description="Address space that a job may take beyond what its worker has, in MiB; a "
        "decoder that wants more costs its own job.",
    )
    job_timeout_s: float = Field(
        900.0, gt=0, le=36_000, description="Longest time that one attempt at a job may run."
    )

    duplicate_guard: Literal["last-copy", "hash", "off"] = Field(
        "last-copy",
        description="What a duplicate job checks before it deletes: `last-copy`, that the file has "
        "the hash and another known copy stays; `hash`, only the hash, if the message names one; "
        "`off`, nothing.",
    )

    max_retries: int = Field(
        3, ge=0, le=100, description="How often a job is tried again after a transient fault."
    )
    retry_delay: float = Field(
        60.0,
        ge=0,
        le=900,
        description="Base of the wait before another try: min(retry_delay·2ⁿ, 300) seconds.",
    )
    visibility_timeout_s: int = Field(
        90,
        ge=2,
        le=43_200,
        description="Lease of a message; it is renewed while the job lives, and is what a "
        "crash of the ingress costs.",
    )
    poll_wait_s: int = Field(10, ge=0, le=20, description="Long poll of the queue.")
    max_in_flight: int = Field(
        400, ge=1, le=10_000, description="Most messages held at one time, waiting ones included."
    )
    target_latency_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="How old a message should get at most: the autoscaler is asked for the CPUs "
        "that it takes.",
    )
    drain_timeout_s: float = Field(
        60.0, ge=0, le=3600, description="How long running jobs may finish after SIGTERM."
    )
    reporters: int = Field(2, ge=1, le=64, description="Actors that send webhooks.")

    scratch_dir: Path = Field(
        Path(tempfile.gettempdir()) / "waveflow",
        description="Folder for audio at work; its files have no name, so a killed process "
        "leaves none behind.",
    )
    cleanup_interval_s: float = Field(
        600.0, gt=0, description="How often the scratch folders of all nodes are swept."
    )
    cleanup_age_s: float = Field(
        1800.0, gt=0, description="Age from which a file in the scratch folder is removed."
    )
    ray_address: str | None = Field(
        None, description="The Ray cluster to join; without it `waveflow run` starts Ray here."
    )
    dashboard: bool = Field(
        True,
        description="Whether `waveflow run` starts the Ray dashboard too: ten processes, 500 MB.",
    )
    dashboard_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the Ray dashboard that `waveflow run` starts; by default 8265 or the "
        "next free one.",
    )

    @field_validator("allowed_mime_types", "allowed_key_prefixes", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value.lstrip().startswith("["):
                return TypeAdapter(tuple[str, ...]).validate_json(value)
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("webhook_url")
    @classmethod
    def _http_address(cls, value: str) -> str:
        value = value.strip()
        TypeAdapter(HttpUrl).validate_python(value)
        return value.rstrip("/")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = value.strip().upper()
        return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(name, name)

    @model_validator(mode="after")
    def _queue_is_named(self) -> Settings:
        if not (self.sqs_queue_url or self.sqs_queue_name):
            raise ValueError("SQS_QUEUE_URL: not set; give the queue's URL, or SQS_QUEUE_NAME")
        return self

    def without_secrets(self) -> Settings:
        """The same for all that goes through Ray: actors, jobs, and what it shows of them."""
        return self.model_copy(update={"webhook_secret": None, "webhook_token": None})

    @property
    def max_file_size_bytes(self) -> int:
        """`max_file_size_mb` in bytes (1 MB is 2²⁰ bytes, as in the Celery worker)."""
        return self.max_file_size_mb * 1024 * 1024


class NodeSettings(Secrets):
    """What a node of a cluster has to know before there is a service."""

    reporters: int = Settings.model_fields["reporters"].default
    aws_ec2_metadata_service_endpoint: str = Field(
        "http://169.254.169.254", description="Where an instance asks about itself, as in boto3."
    )


def signing_keys(secrets: str) -> list[bytes]:
    """The keys in WEBHOOK_SECRET, the newest first.

    Raises:
        ValueError: one of them is no secret in the form of Standard Webhooks.
    """
    keys = []
    for secret in secrets.split():
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
            raise ValueError(f"a secret is '{SECRET_PREFIX}' and base64 of 24 to 64 bytes")
        keys.append(key)
    return keys


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, ``.env`` and `overrides`, the last one strongest.

    Raises:
        ConfigurationError: one line per wrong variable: its name, value and what is allowed.
    """
    return _load(Settings, overrides)


def load_node_settings(env_file: Path) -> NodeSettings:
    """The same for a node, with its own ``.env``."""
    return _load(NodeSettings, {"_env_file": env_file})


def _load(kind: type[S], overrides: dict[str, Any]) -> S:
    try:
        return kind(**overrides)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"][:1]).upper()
            if item["type"] == "missing":
                lines.append(f"{name}: not set; {_meaning(name)}")
            elif not name:
                lines.append(item["msg"].removeprefix("Value error, "))
            else:
                value = "(hidden)" if name in SECRETS else item["input"]
                lines.append(f"{name}={value}: {item['msg']}; {_meaning(name)}")
        raise ConfigurationError("\n".join(lines)) from None


def _meaning(name: str) -> str:
    """What a variable is for, and the values it takes."""
    field = Settings.model_fields.get(name.lower())
    if field is None:
        return ""
    limits = {
        sign: getattr(limit, attribute)
        for limit in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(limit, attribute)
    }
    allowed = " and ".join(f"{sign} {value:g}" for sign, value in limits.items())
    meaning = field.description or ""
    return f"{meaning} Allowed: {allowed}." if allowed else meaning
