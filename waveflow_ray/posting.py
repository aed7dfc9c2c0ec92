"""Webhooks out: post one, sign it, remember what was delivered. No retries here, no Ray."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import aiohttp

from waveflow_ray.outcomes import Webhook
from waveflow_ray.webhooks import Answer, Verdict, judge, retry_after_s, signature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 4.0  # the main server closes idle connections after 5 s; we are first
ANSWER_BYTES = 64 * 1024
QUOTED_BYTES = 2000
REMEMBERED = 10_000


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
