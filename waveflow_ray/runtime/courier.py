"""Brings a webhook to the main server, however long that server is away."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from waveflow_ray.metrics import Metrics
from waveflow_ray.outcomes import Webhook
from waveflow_ray.settings import Settings
from waveflow_ray.webhooks import Answer, Verdict

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
Jitter = Callable[[float], float]


@dataclass(frozen=True)
class Delivery:
    """How it ended: delivered or given up, the last answer, and how often it was sent."""

    delivered: bool
    answer: Answer
    attempts: int


class Breaker:
    """Open while the main server is away: then one webhook at a time probes, the rest wait.

    The ingress takes hardly any new messages while it is open.
    """

    def __init__(
        self, first_pause_s: float, max_pause_s: float, sleep: Sleep, jitter: Jitter
    ) -> None:
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._sleep = sleep
        self._jitter = jitter
        self._pause_s = first_pause_s
        self._turn = asyncio.Lock()  # first come, first served: nobody probes for ever
        self._probing = False
        self.closed = asyncio.Event()
        self.closed.set()

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Wait until a webhook may be sent: at once, or as the probe after a pause."""
        if not self.closed.is_set():
            async with self._turn:
                if not self.closed.is_set():
                    await self._sleep(self._jitter(self._pause_s))
                    self._probing = True
                    try:
                        yield
                    finally:
                        self._probing = False
                    return
        yield

    def record(self, answer: Answer) -> None:
        """Learn from an answer whether the server is there."""
        if answer.verdict is Verdict.AWAY:
            if self.closed.is_set():
                logger.warning("the main server is away", extra={"fields": {"answer": answer.text}})
                self._pause_s = self._first_pause_s
                self.closed.clear()
            elif self._probing:
                self._pause_s = min(self._pause_s * 2, self._max_pause_s)
            self._pause_s = max(self._pause_s, answer.retry_after_s)
        elif not self.closed.is_set():
            logger.info("the main server is back")
            self.closed.set()


class Courier:
    """Posts webhooks until they are delivered or there is no more point in trying."""

    def __init__(
        self,
        post: Callable[[Webhook], Awaitable[Answer]],
        settings: Settings,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Jitter | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._post = post
        self._settings = settings
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter or jittered
        self.breaker = Breaker(
            settings.webhook_pause_s, settings.webhook_max_pause_s, sleep, self._jitter
        )
        self.retries = 0
        self._answered = 0

    async def deliver(self, webhook: Webhook) -> Delivery:
        """Send `webhook` until it is delivered, refused, or failed for WEBHOOK_GIVE_UP_S.

        A server that seems away to this webhook again, though it answered others meanwhile, is
        not away: it fails at this one. Only time in which others are answered counts then.
        """
        attempts = 0
        pause_s = self._settings.webhook_pause_s
        suspect = False  # others were answered after it found nobody
        answered_then: int | None = None
        failed_at: float | None = None
        faulty_s = 0.0
        while True:
            async with self.breaker.attempt():
                answer = await self._post(webhook)
                if not answer.repeated:
                    verdict = answer.verdict.value
                    self._metrics.webhook_answered(webhook.path, verdict, answer.text)
                away = answer.verdict is Verdict.AWAY
                others = answered_then is not None and self._answered > answered_then
                suspect = suspect or (away and others)
                if not (away and suspect and self.breaker.closed.is_set()):
                    self.breaker.record(answer)
            attempts += 1
            self._answered += not away
            answered_then = self._answered
            if answer.verdict is Verdict.DELIVERED:
                return Delivery(True, answer, attempts)
            if answer.verdict is Verdict.REFUSED:
                return Delivery(False, answer, attempts)
            self.retries += 1
            if away and not suspect:
                failed_at, faulty_s = None, 0.0
                continue  # the breaker makes it wait
            now = self._clock()
            if failed_at is not None and (others or not away):
                faulty_s += now - failed_at
            failed_at = now
            if faulty_s >= self._settings.webhook_give_up_s:
                return Delivery(False, answer, attempts)
            await self._sleep(max(self._jitter(pause_s), answer.retry_after_s))
            pause_s = min(pause_s * 2, self._settings.webhook_max_pause_s)


def jittered(pause_s: float) -> float:
    """A pause of 50 to 100 % of `pause_s`, so that many waiters do not come back as one."""
    return pause_s * random.uniform(0.5, 1.0)
