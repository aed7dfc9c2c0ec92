from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from waveflow_ray.logs import LogTail, configure_logging

logger = logging.getLogger("waveflow_ray.somewhere")


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    """Puts the package's logger back as it was."""
    root = logging.getLogger("waveflow_ray")
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], level, root.propagate = before
    root.setLevel(level)


def logged(log_format: str, level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(level, log_format, stream)
    return stream


def test_text_is_one_readable_line() -> None:
    """Time in UTC, level, event, then key=value."""
    stream = logged("text")
    logger.info("job", extra={"fields": {"job_id": "hash-1", "kind": "hash", "attempt": 1}})
    line = stream.getvalue()
    assert line.count("\n") == 1
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert "T" in time
    assert rest == "INFO    job job_id=hash-1 kind=hash attempt=1\n"


def test_text_quotes_what_could_be_misread() -> None:
    """Spaces, quotes, equal signs and newlines in a value do not make two values of it."""
    stream = logged("text")
    fields = {"a": "two words", "b": 'say "hi"', "c": "x=1", "d": "one\ntwo", "e": "드럼", "f": ""}
    logger.info("job", extra={"fields": fields})
    line = stream.getvalue().rstrip("\n")
    assert line.endswith(r"""job a="two words" b="say \"hi\"" c="x=1" d="one\ntwo" e=드럼 f=""")
    assert "\n" not in line


def test_text_shows_numbers_briefly_and_tables_flat() -> None:
    """Seconds by stage fit in the line; three decimals are enough."""
    stream = logged("text")
    seconds = {"download": 0.123456, "work": 2}
    logger.info("job", extra={"fields": {"seconds": seconds, "x": 1 / 3, "none": {}}})
    assert stream.getvalue().endswith("job seconds=download:0.123,work:2 x=0.333 none=-\n")


def test_json_is_one_object_a_line() -> None:
    """Machines get the fields beside time, level, logger and event."""
    stream = logged("json")
    logger.warning("lease lost", extra={"fields": {"job_id": "드럼-1", "seconds": {"work": 0.5}}})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "WARNING",
        "logger": "waveflow_ray.somewhere",
        "event": "lease lost",
        "job_id": "드럼-1",
        "seconds": {"work": 0.5},
    }
    assert "드럼" in lines[0]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nulls_are_left_out(log_format: str) -> None:
    """What is not known needs no words."""
    stream = logged(log_format)
    logger.info("job", extra={"fields": {"node": None, "kind": "hash"}})
    assert "node" not in stream.getvalue()
    assert "hash" in stream.getvalue()


def test_json_takes_values_of_any_type() -> None:
    """A log line never fails for a value that JSON does not know."""
    stream = logged("json")
    logger.info("job", extra={"fields": {"code": {1}, "error": ValueError("x")}})
    assert json.loads(stream.getvalue())["code"] == "{1}"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_exceptions_are_logged_with_their_traceback(log_format: str) -> None:
    """An engineer needs to see where it broke; JSON keeps it in the one line."""
    stream = logged(log_format)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logger.exception("job %s broke", "hash-1")
    text = stream.getvalue()
    assert "job hash-1 broke" in text
    assert "RuntimeError: broken" in text
    if log_format == "json":
        assert "Traceback" in json.loads(text)["exception"]


def test_a_format_string_of_the_celery_worker_works() -> None:
    """LOG_FORMAT keeps its meaning, Python's logging format; the fields follow."""
    stream = logged("[%(levelname)s] %(name)s: %(message)s")
    logger.info("job", extra={"fields": {"job_id": "hash-1"}})
    assert stream.getvalue() == "[INFO] waveflow_ray.somewhere: job job_id=hash-1\n"


def test_what_is_below_the_level_is_not_logged() -> None:
    """LOG_LEVEL is the least severe level."""
    stream = logged("text", "WARNING")
    logger.info("quiet")
    logger.warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_setting_up_twice_logs_once() -> None:
    """Workers are reused: every job sets up logging again."""
    first = logged("text")
    second = logged("text")
    logger.info("job")
    assert first.getvalue() == ""
    assert second.getvalue().count("job") == 1


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to what a command was asked for."""
    configure_logging("INFO", "text")
    logger.info("job")
    captured = capsys.readouterr()
    assert "job" in captured.err
    assert captured.out == ""


def test_the_tail_hands_out_every_line_once() -> None:
    """`waveflow run` asks again and again for what is new."""
    tail = LogTail()
    configure_logging("INFO", "%(message)s", io.StringIO(), tail)
    logger.info("one")
    logger.info("two")
    number, lines = tail.after(0)
    assert lines == ["one", "two"]
    assert tail.after(number) == (number, [])
    logger.info("three")
    assert tail.after(number)[1] == ["three"]


def test_the_tail_is_bounded() -> None:
    """Nobody may be asking; memory stays small, and numbers go on."""
    tail = LogTail(lines=3)
    configure_logging("INFO", "%(message)s", io.StringIO(), tail)
    for index in range(10):
        logger.info("line %d", index)
    assert tail.after(0) == (10, ["line 7", "line 8", "line 9"])
    assert tail.after(9) == (10, ["line 9"])


def test_a_bad_format_string_never_breaks_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    """A format that names an unknown field costs the line, not the job that logs it."""
    configure_logging("INFO", "%(task_id)s %(message)s", io.StringIO(), LogTail())
    logger.info("job")
    assert "task_id" in capsys.readouterr().err
