from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from waveflow_ray.errors import ConfigurationError
from waveflow_ray.settings import Secrets, Settings, load_settings

OPERATIONS_MD = Path(__file__).parents[2] / "docs" / "operations.md"
REQUIRED = {
    "S3_BUCKET_NAME": "waveflow",
    "SQS_QUEUE_URL": "https://sqs.ap-northeast-2.amazonaws.com/1/jobs",
    "WEBHOOK_URL": "http://main-server:3000",
}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The least environment that works, and a working directory without a .env file."""
    monkeypatch.chdir(tmp_path)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_defaults_are_the_celery_workers(env: pytest.MonkeyPatch) -> None:
    """A deployment that set nothing else goes on as it was."""
    settings = load_settings()
    assert settings.aws_region == "ap-northeast-2"
    assert settings.aws_endpoint_url is None
    assert settings.log_level == "INFO"
    assert settings.log_format == "text"
    assert settings.max_file_size_mb == 100
    assert settings.max_file_size_bytes == 100 * 1024 * 1024
    assert settings.default_waveform_peaks == 4000
    assert settings.max_retries == 3
    assert settings.retry_delay == 60
    assert settings.webhook_give_up_s == 600
    assert set(settings.allowed_mime_types) == {
        "audio/wav",
        "audio/flac",
        "audio/ogg",
        "audio/mpeg",
        "audio/aiff",
    }


def test_every_variable_of_the_celery_worker_is_read(env: pytest.MonkeyPatch) -> None:
    """Names and meanings are kept, so that its environment can be taken over."""
    given = REQUIRED | {
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:5000",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "%(asctime)s %(message)s",
        "MAX_FILE_SIZE_MB": "250",
        "ALLOWED_MIME_TYPES": "audio/wav",
        "DEFAULT_WAVEFORM_PEAKS": "1000",
        "MAX_RETRIES": "5",
        "RETRY_DELAY": "2.5",
    }
    for name, value in given.items():
        env.setenv(name, value)
    settings = load_settings()
    assert settings.s3_bucket_name == REQUIRED["S3_BUCKET_NAME"]
    assert settings.sqs_queue_url == REQUIRED["SQS_QUEUE_URL"]
    assert settings.webhook_url == REQUIRED["WEBHOOK_URL"]
    assert settings.aws_region == "eu-central-1"
    assert settings.aws_endpoint_url == "http://127.0.0.1:5000"
    assert settings.log_level == "DEBUG"
    assert settings.log_format == "%(asctime)s %(message)s"
    assert settings.max_file_size_mb == 250
    assert settings.allowed_mime_types == ("audio/wav",)
    assert settings.default_waveform_peaks == 1000
    assert (settings.max_retries, settings.retry_delay) == (5, 2.5)


def test_a_dotenv_file_is_read_and_the_environment_is_stronger(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """.env in the working directory, then the environment, then what a caller gives."""
    (tmp_path / ".env").write_text("MAX_RETRIES=7\nRETRY_DELAY=1\nSOMETHING_ELSE=x\n")
    env.setenv("RETRY_DELAY", "2")
    settings = load_settings(max_in_flight=9)
    assert (settings.max_retries, settings.retry_delay, settings.max_in_flight) == (7, 2, 9)
    assert load_settings(max_retries=8).max_retries == 8


def test_an_empty_variable_is_not_set(env: pytest.MonkeyPatch) -> None:
    """Compose files pass variables on as empty text where nobody set them."""
    env.setenv("MAX_RETRIES", "")
    env.setenv("AWS_ENDPOINT_URL", "")
    settings = load_settings()
    assert (settings.max_retries, settings.aws_endpoint_url) == (3, None)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WEBHOOK_URL", "main-server", "URL"),
        ("WEBHOOK_URL", "ftp://main-server", "'http' or 'https'"),
        ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
        ("MAX_FILE_SIZE_MB", "0", "greater than or equal to 1"),
        ("MAX_FILE_SIZE_MB", "big", "integer"),
        ("DEFAULT_WAVEFORM_PEAKS", "0", "greater than or equal to 1"),
        ("MAX_RETRIES", "-1", "greater than or equal to 0"),
        ("RETRY_DELAY", "soon", "number"),
        ("VISIBILITY_TIMEOUT_S", "50000", "less than or equal to 43200"),
        ("POLL_WAIT_S", "21", "less than or equal to 20"),
        ("ALLOWED_MIME_TYPES", '["audio/wav"', "JSON"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    env: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    """One line says which variable, what it is set to, and what it may be."""
    env.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith(f"{name}={value}: ")
    assert allowed in text
    assert "\n" not in text
    assert (Settings.model_fields[name.lower()].description or "?") in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOK_SECRET", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("WEBHOOK_SECRET", "whsec_c2hvcnQ="),
        ("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw whsec_%%%"),
        ("WEBHOOK_TOKEN", "two words"),
    ],
)
def test_a_wrong_secret_is_refused_and_not_shown(
    env: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The error names the variable; a log of it must not tell the secret."""
    env.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{name}=(hidden): ")
    assert value not in str(caught.value)


def test_secrets_stay_with_those_who_need_them(env: pytest.MonkeyPatch) -> None:
    """Not in what is printed of the settings, and not in what jobs get of them."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    env.setenv("WEBHOOK_SECRET", secret)
    env.setenv("WEBHOOK_TOKEN", "t0ken")
    settings = load_settings()
    assert secret not in repr(settings)
    assert "t0ken" not in repr(settings)
    assert settings.without_secrets().webhook_secret is None
    assert settings.without_secrets().webhook_token is None
    assert secret.encode() not in pickle.dumps(settings.without_secrets())


def test_a_fingerprint_tells_secrets_apart(env: pytest.MonkeyPatch) -> None:
    """By it a node knows whether its secrets are those that the service was started with."""
    none = Secrets().fingerprint
    env.setenv("WEBHOOK_TOKEN", "t0ken")
    one = Secrets().fingerprint
    assert load_settings().fingerprint == one
    env.setenv("WEBHOOK_TOKEN", "t1ken")
    assert len({none, one, Secrets().fingerprint}) == 3


def test_every_wrong_variable_has_its_line(env: pytest.MonkeyPatch) -> None:
    """All mistakes at once, so that nobody has to start it again and again."""
    env.delenv("S3_BUCKET_NAME")
    env.delenv("WEBHOOK_URL")
    env.setenv("MAX_RETRIES", "x")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in sorted(lines)] == [
        "MAX_RETRIES=x",
        "S3_BUCKET_NAME",
        "WEBHOOK_URL",
    ]
    assert sum("not set" in line for line in lines) == 2


def test_the_queue_is_named_by_url_or_by_name(env: pytest.MonkeyPatch) -> None:
    """Either will do; with neither the text says both."""
    env.delenv("SQS_QUEUE_URL")
    with pytest.raises(ConfigurationError, match=r"^SQS_QUEUE_URL: not set.*SQS_QUEUE_NAME"):
        load_settings()
    env.setenv("SQS_QUEUE_NAME", "jobs")
    settings = load_settings()
    assert (settings.sqs_queue_url, settings.sqs_queue_name) == (None, "jobs")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://main-server", "http://main-server"),
        ("http://main-server/", "http://main-server"),
        ("https://main-server:3000/api/", "https://main-server:3000/api"),
    ],
)
def test_a_trailing_slash_of_the_webhook_url_is_stripped(
    env: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    """The paths begin with one."""
    env.setenv("WEBHOOK_URL", value)
    assert load_settings().webhook_url == expected


@pytest.mark.parametrize(
    "value",
    ["audio/wav,audio/mpeg", " audio/wav , audio/mpeg, ", '["audio/wav", "audio/mpeg"]'],
)
def test_media_types_are_a_comma_list_or_a_json_list(env: pytest.MonkeyPatch, value: str) -> None:
    """The Celery worker took a JSON list; people write commas."""
    env.setenv("ALLOWED_MIME_TYPES", value)
    assert load_settings().allowed_mime_types == ("audio/wav", "audio/mpeg")


def test_settings_never_change(env: pytest.MonkeyPatch) -> None:
    """They travel with the jobs: every node works by the same values."""
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.max_retries = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_says_what_it_is_for() -> None:
    """The descriptions are what an operator reads when a value is wrong."""
    for name, field in Settings.model_fields.items():
        assert field.description, name


@pytest.mark.skipif(not OPERATIONS_MD.exists(), reason="docs/operations.md is not written yet")
@pytest.mark.parametrize("name", [name.upper() for name in Settings.model_fields])
def test_every_setting_is_documented(name: str) -> None:
    """An operator finds every variable in docs/operations.md."""
    assert f"`{name}`" in OPERATIONS_MD.read_text(encoding="utf-8")
