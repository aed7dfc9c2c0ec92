"""Brings a webhook to the main server, however long that server is away."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from waveflow_ray.outcomes import Webhook
from waveflow_ray.settings import Settings
from waveflow_ray.webhooks import Answer, Verdict

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Delivery:
    """How it ended: delivered or given up, the last answer, and how often it was sent."""

    delivered: bool
    answer: Answer
    attempts: int


class Breaker:
    """Open while the main server is away: then one webhook at a time probes, the rest wait.

    The ingress takes no new messages while it is open.
    """

    def __init__(self, first_pause_s: float, max_pause_s: float, sleep: Sleep) -> None:
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._sleep = sleep
        self._pause_s = first_pause_s
        self._probing = False
        self.closed = asyncio.Event()
        self.closed.set()
        self._free = asyncio.Event()

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Wait until a webhook may be sent: at once, or as the probe after a pause."""
        probe = False
        while not self.closed.is_set() and not probe:
            if self._probing:
                self._free.clear()
                await self._free.wait()
            else:
                self._probing = probe = True
        try:
            if probe:
                await self._sleep(jittered(self._pause_s))
            yield
        finally:
            if probe:
                self._probing = False
                self._free.set()

    def record(self, answer: Answer) -> None:
        """Learn from an answer whether the server is there."""
        if answer.verdict is Verdict.AWAY:
            if self.closed.is_set():
                logger.warning("the main server is away", extra={"fields": {"answer": answer.text}})
                self._pause_s = self._first_pause_s
                self.closed.clear()
            elif self._probing:
                self._pause_s = min(self._pause_s * 2, self._max_pause_s)
        elif not self.closed.is_set():
            logger.info("the main server is back")
            self.closed.set()
            self._free.set()


class Courier:
    """Posts webhooks until they are delivered or there is no more point in trying."""

    def __init__(
        self,
        post: Callable[[Webhook], Awaitable[Answer]],
        settings: Settings,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._post = post
        self._settings = settings
        self._sleep = sleep
        self._clock = clock
        self.breaker = Breaker(settings.webhook_pause_s, settings.webhook_max_pause_s, sleep)
        self.retries = 0

    async def deliver(self, webhook: Webhook) -> Delivery:
        """Send `webhook` until it is delivered, refused, or failed for WEBHOOK_GIVE_UP_S."""
        attempts = 0
        pause_s = self._settings.webhook_pause_s
        faulty_since: float | None = None
        while True:
            async with self.breaker.attempt():
                answer = await self._post(webhook)
                self.breaker.record(answer)
            attempts += 1
            if answer.verdict is Verdict.DELIVERED:
                return Delivery(True, answer, attempts)
            if answer.verdict is Verdict.REFUSED:
                return Delivery(False, answer, attempts)
            self.retries += 1
            if answer.verdict is Verdict.AWAY:
                faulty_since = None
                continue  # the breaker makes it wait
            now = self._clock()
            faulty_since = now if faulty_since is None else faulty_since
            if now - faulty_since >= self._settings.webhook_give_up_s:
                return Delivery(False, answer, attempts)
            await self._sleep(jittered(pause_s))
            pause_s = min(pause_s * 2, self._settings.webhook_max_pause_s)


def jittered(pause_s: float) -> float:
    """A pause of 50 to 100 % of `pause_s`, so that many waiters do not come back as one."""
    return pause_s * random.uniform(0.5, 1.0)
