"""Webhooks: their signature, and what the main server means by its answer.

The rules come from how the production server behaves; docs/messages.md lists them.
"""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING

from waveflow_ray.outcomes import HASH_CHECK, Webhook

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_RETRY_AFTER_S = 300.0


class Verdict(Enum):
    """What an answer means for the webhook."""

    DELIVERED = "delivered"
    AWAY = "away"  # the server is not there: wait for it, and send it nothing meanwhile
    FAULT = "fault"  # the server is there and failed at this webhook: try again for a while
    REFUSED = "refused"  # trying again cannot help


@dataclass(frozen=True)
class Answer:
    """The verdict, and what an engineer wants to read about it."""

    verdict: Verdict
    text: str
    repeated: bool = False
    retry_after_s: float = 0.0


def judge(webhook: Webhook, status: int, body: bytes) -> Verdict:
    """What the main server's answer means.

    A 2xx whose JSON says ``"status": "error"`` means that the server's database is away and the
    result is lost; except after a FAILURE, which /mixing-complete always answers so, and for
    /hash-check, whose body is a verdict about the stem.
    """
    if 200 <= status < 300:
        lost = webhook.path != HASH_CHECK and webhook.status == "SUCCESS" and _says_error(body)
        return Verdict.FAULT if lost else Verdict.DELIVERED
    if status in (408, 429, 502, 503, 504):
        return Verdict.AWAY
    if 400 <= status < 500:
        return Verdict.REFUSED
    return Verdict.FAULT


def signature(keys: Sequence[bytes], webhook_id: str, timestamp: str, body: bytes) -> str:
    """The ``webhook-signature`` header of Standard Webhooks 1.0, one signature for each key.

    HMAC-SHA256 of ``id.timestamp.body``, in base64, behind ``v1,``.
    """
    content = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, content, "sha256") for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def retry_after_s(header: str | None, now: float) -> float:
    """Seconds that a ``Retry-After`` asks for (RFC 9110: a number, or a date); 300 at most.

    Args:
        now: seconds since 1970.
    """
    if header is None:
        return 0.0
    try:
        seconds = float(header) if header.strip().isdigit() else _time_of(header) - now
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _time_of(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


def _says_error(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and answer.get("status") == "error"
