"""Logging: one line per job, as text for people or as JSON for machines.

Log calls pass what belongs together as ``extra={"fields": {...}}``; the event name is the message.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from datetime import UTC, datetime
from typing import Any, TextIO

ROOT = "waveflow_ray"


class TextFormatter(logging.Formatter):
    """``time LEVEL event key=value …``, one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={_plain(v)}" for k, v in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}"
        text = f"{line} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        entry |= _fields(record)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class FieldsFormatter(logging.Formatter):
    """A format string of the operator's own, with the fields behind it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={_plain(v)}" for k, v in _fields(record).items())
        return f"{super().format(record)} {fields}".rstrip()


class LogTail(logging.StreamHandler[TextIO]):
    """Writes lines, and keeps the last in memory, numbered, for `waveflow run` to print.

    Ray's own forwarding would prefix every line and leave out repeated ones.
    """

    def __init__(self, lines: int = 5000) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=lines)
        self._next = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            self.stream.write(line + self.terminator)
            self.flush()
        except Exception:
            self.handleError(record)
            return
        self._lines.append(line)
        self._next += 1

    def after(self, number: int) -> tuple[int, list[str]]:
        """The lines from `number` on, and the number to ask for next."""
        first = self._next - len(self._lines)
        return self._next, list(self._lines)[max(0, number - first) :]


def configure_logging(
    level: str, log_format: str, stream: TextIO | None = None, tail: LogTail | None = None
) -> None:
    """Set up the package's logger in this process.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        log_format: ``text``, ``json``, or a format string of `logging` such as
            ``%(asctime)s %(message)s``.
        stream: where lines go; standard error by default.
        tail: keeps the lines as well.
    """
    formatter: logging.Formatter
    if log_format == "json":
        formatter = JsonFormatter()
    elif "%(" in log_format:
        formatter = FieldsFormatter(log_format)
    else:
        formatter = TextFormatter()
    handler = tail or logging.StreamHandler()
    handler.setStream(stream or sys.stderr)
    handler.setFormatter(formatter)
    logger = logging.getLogger(ROOT)
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    if logger.level != logging.getLevelNamesMapping()[level]:  # it goes through all loggers
        logger.setLevel(level)
    logger.propagate = False


def _time(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", {})
    return {k: v for k, v in fields.items() if v is not None}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}:{_plain(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        return "[" + " ".join(f"({_plain(item)})" for item in value) + "]"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ' "=\n') else text
