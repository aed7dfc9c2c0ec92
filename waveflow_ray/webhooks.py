"""Webhooks out: post one, and judge what the main server answered. No retries here, no Ray.

The rules come from how the production server behaves; docs/messages.md lists them.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, Self

import aiohttp

from waveflow_ray.outcomes import HASH_CHECK, Webhook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 4.0  # the main server closes idle connections after 5 s; we are first
ANSWER_BYTES = 64 * 1024
QUOTED_BYTES = 2000
REMEMBERED = 10_000
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


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The answer, or its beginning if it is very long."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size >= ANSWER_BYTES:
            break
    return b"".join(parts)


def _away(error: BaseException) -> Answer:
    return Answer(Verdict.AWAY, f"{type(error).__name__}: {error}")


class Poster:
    """Sends webhooks over kept connections, one at a time for each subject.

    Remembers what was delivered and what was tried: the same event is never sent after it was
    delivered, and is sent byte for byte as at first, also when the job was done again meanwhile.

    Args:
        base_url: WEBHOOK_URL, without a slash at its end.
        timeout_s: for one attempt, from connecting to the end of the answer.
        keys: sign every webhook with each of these.
        token: sent as ``Authorization: Bearer``.
        clock: seconds since 1970, for ``webhook-timestamp``.
    """

    def __init__(
        self,
        base_url: str,
        timeout_s: float,
        keys: Sequence[bytes] = (),
        token: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = base_url
        self._keys = keys
        self._token = token
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._session: aiohttp.ClientSession | None = None
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._delivered: OrderedDict[str, None] = OrderedDict()
        self._tried: OrderedDict[str, bytes] = OrderedDict()

    async def post(self, webhook: Webhook) -> Answer:
        """Send a webhook once. Never raises for anything that the network or the server does."""
        async with self._alone(webhook.subject):
            if webhook.id in self._delivered:
                return Answer(Verdict.DELIVERED, "delivered before", repeated=True)
            body = self._tried.setdefault(webhook.id, webhook.body)
            answer = await self._send(webhook, body)
            if answer.verdict is Verdict.DELIVERED:
                self._tried.pop(webhook.id, None)
                self._delivered[webhook.id] = None
            for memory in (self._delivered, self._tried):
                while len(memory) > REMEMBERED:
                    memory.popitem(last=False)
            return answer

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, webhook: Webhook, body: bytes) -> Answer:
        session = self._open_session()
        url = self.base_url + webhook.path
        headers = self._headers(webhook.id, body)
        for last in (False, True):
            try:
                async with session.post(
                    url, data=body, headers=headers, allow_redirects=False
                ) as response:
                    answer = await _read(response)
                    verdict = judge(webhook, response.status, answer)
                    quote = answer[:QUOTED_BYTES].decode(errors="replace")
                    wait_s = retry_after_s(response.headers.get("Retry-After"), self._clock())
                    return Answer(verdict, f"{response.status} {quote}", retry_after_s=wait_s)
            except aiohttp.ClientConnectorError as error:
                return _away(error)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, OSError) as error:
                # Most likely a kept connection that the server closed: no fault of the server's.
                if last or isinstance(error, TimeoutError):
                    return _away(error)
            except (aiohttp.ClientError, TimeoutError) as error:
                return _away(error)
        raise AssertionError("unreachable")

    def _headers(self, webhook_id: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._clock()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
        }
        if self._keys:
            headers["webhook-signature"] = signature(self._keys, webhook_id, timestamp, body)
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Unlimited here: MAX_IN_FLIGHT bounds it, and a wait would count as a timeout.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                timeout=self._timeout,
                skip_auto_headers=("User-Agent",),
                headers={"User-Agent": "waveflow-ray"},
            )
        return self._session

    @asynccontextmanager
    async def _alone(self, subject: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(subject, (asyncio.Lock(), 0))
        self._locks[subject] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(subject)
            if users > 1:
                self._locks[subject] = (lock, users - 1)
