"""The way of a job: lease, parse, do, report, delete last. No Ray in here.

Guarantees, whatever dies: a message is deleted only after its job's one outcome was delivered
or kept in the dead-letter queue; until then SQS has it. What is held here can be lost at any
time: SQS delivers it again, and every step is safe to repeat.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol

from waveflow_ray.aws.sqs import BATCH, Message, QueueError, QueueFacts
from waveflow_ray.errors import ErrorCode, internal_error
from waveflow_ray.messages import AnalysisJob, CleanupJob, Job, MixJob, RejectedJob, parse
from waveflow_ray.metrics import DEAD_LETTERS_WRITTEN, STAGES, Metrics
from waveflow_ray.outcomes import Outcome, Webhook, failed
from waveflow_ray.runtime.courier import Courier, Delivery
from waveflow_ray.runtime.demand import Backlog, Costs
from waveflow_ray.runtime.leases import Held, Leases
from waveflow_ray.runtime.slots import SlotPool, Slots
from waveflow_ray.runtime.subjects import JobsInHand, Line, Ticket
from waveflow_ray.settings import Settings
from waveflow_ray.webhooks import Verdict

logger = logging.getLogger(__name__)

POLLERS = 2
LONGEST_RETRY_DELAY_S = 300
LOOK_AGAIN_S = (1.0, 2.0, 4.0)
"""A missing object may be an upload that is just ending; a person is waiting, so not longer."""
TROUBLE_PAUSE_S = 2.0
JOBS_WHILE_AWAY = 4
SLOTS_EVERY_S = 2.0
ROOM_LOOK_S = 0.05


class Executor(Protocol):
    """Where jobs are done."""

    async def run(self, job: Job, *, again: bool) -> Outcome:
        """Do one attempt. Never raises for what a job can cause; cancelling stops the work.

        Args:
            again: the message was received before.
        """

    async def keep(self, webhook: Webhook) -> Webhook:
        """The webhook as it was first decided on, also if the job is done again."""

    async def forget(self, webhook: Webhook) -> None:
        """What was kept for the job of this webhook does not stand any more."""

    async def clean(self) -> Outcome:
        """Sweep the scratch folder of every node."""

    async def slots(self) -> Slots:
        """How much fits now."""


async def _cancel(jobs: list[Held]) -> None:
    """Stop jobs; their messages are still held."""
    tasks = [held.task for held in jobs if held.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Ingress:
    """Leases jobs, has them done, has their outcomes delivered, deletes their messages."""

    def __init__(
        self,
        settings: Settings,
        leases: Leases,
        executor: Executor,
        courier: Courier,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self.costs = Costs()
        self.settings = settings
        self.leases = leases
        self.executor = executor
        self.courier = courier
        self.counts: Counter[str] = Counter()
        self.draining = False
        self.ready = asyncio.Event()
        self._sleep = sleep
        self._line = Line()
        self._light = SlotPool()
        self._heavy = SlotPool()
        self._mixes = SlotPool()
        self._slots = Slots(1, 1, 1)
        self._others: dict[int, Ticket] = {}
        self._other_mixes = 0
        self._max_receives: int | None = None
        self._pollers: list[asyncio.Task[None]] = []
        self._background: list[asyncio.Task[None]] = []
        self._asked_for = 0
        self._late: list[str] = []

    async def run(self) -> None:
        """Work until `drain` is called."""
        facts = await self._first_facts()
        self._max_receives = facts.max_receives
        if facts.dlq_url is None:
            logger.warning("the queue has no dead-letter queue: set a redrive policy")
        elif facts.max_receives is not None and facts.max_receives <= self.settings.max_retries:
            logger.warning(
                "the redrive policy ends jobs before MAX_RETRIES does",
                extra={"fields": {"max_receive_count": facts.max_receives}},
            )
        await self._resize()
        self._background = [
            asyncio.create_task(job)
            for job in (
                self.leases.renew_for_ever(),
                self.leases.delete_for_ever(),
                self._every(SLOTS_EVERY_S, self._resize),
                self._every(self.settings.cleanup_interval_s, self._clean),
            )
        ]
        self._pollers = [asyncio.create_task(self._poll()) for _ in range(POLLERS)]
        logger.info("ready", extra={"fields": {"queue": self.leases.queue.url}})
        self.ready.set()
        # A part that breaks ends all: without renewals, say, nothing else can be relied on.
        tasks = [*self._pollers, *self._background]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if not task.cancelled():
                task.result()

    def in_hand(self) -> JobsInHand:
        """All jobs whose messages are held."""
        return {
            held.number: (
                held.job.subject,
                isinstance(held.job, MixJob) and held.stage == "running",
            )
            for held in self.leases.held.values()
        }

    def make_way(self, others: JobsInHand) -> None:
        """Leave room to an ingress that takes no more messages, and ends what it has in hand.

        Nothing is reported about a subject before that one is done with it, and its mixes count
        among ours.

        Args:
            others: its `in_hand`. To be called again as that gets less, at last with nothing.
        """
        for number in self._others.keys() - others.keys():
            self._others.pop(number).leave()
        for number in others.keys() - self._others.keys():
            first = (0, number)
            self._others[number] = self._line.join(others[number][0], first)
        self._other_mixes = sum(mix for _, mix in others.values())
        self._share_slots()

    async def drain(self, timeout_s: float) -> dict[str, int]:
        """Stop taking messages, let running jobs end, give the rest back. Returns counts.

        Jobs that wait for a free worker go back at once; so does what the last poll brings.
        """
        self.draining = True
        deadline = time.monotonic() + timeout_s
        waiting = [h for h in self.leases.held.values() if h.stage in ("waiting", "pausing")]
        running = [h.task for h in self.leases.held.values() if h.task and h not in waiting]
        fields = {"running": len(running), "waiting": len(waiting)}
        logger.info("draining", extra={"fields": fields})
        await _cancel(waiting)
        # Nothing is given back before the last polls are over: they would bring it again.
        await asyncio.gather(*self._pollers, return_exceptions=True)
        await self.leases.release_handles(self._late)
        await self.leases.release(waiting)
        if running:
            await asyncio.wait(running, timeout=max(0.0, deadline - time.monotonic()))
        rest = list(self.leases.held.values())
        await _cancel(rest)
        await self.leases.release(rest)
        await self.leases.deleted()
        for task in self._background:
            task.cancel()
        result = {"finished": len(running) - len(rest), "given_back": len(waiting) + len(rest)}
        logger.info("drained", extra={"fields": result})
        return result

    def status(self) -> dict[str, Any]:
        """What is in hand by kind and stage, what was done, and whether intake is paused."""
        held: dict[str, Counter[str]] = {}
        for job in self.leases.held.values():
            held.setdefault(job.job.kind, Counter())[job.stage] += 1
        now = time.monotonic()
        return {
            "ready": self.ready.is_set(),
            "draining": self.draining,
            "main_server_away": not self.courier.breaker.closed.is_set(),
            "oldest_age_s": max((now - job.sent for job in self.leases.held.values()), default=0.0),
            "in_flight": {kind: dict(stages) for kind, stages in held.items()},
            "done": dict(self.counts),
            "leases_lost": dict(self.leases.lost),
            "webhook_retries": self.courier.retries,
            "slots": {"light": self._light.size, "heavy": self._heavy.size},
        }

    def backlog(self, queued: int) -> Backlog:
        """What waits for CPUs, with `queued` messages in the queue.

        While the main server is away, nothing of it does: nothing could be reported.
        """
        if self.draining or not self.courier.breaker.closed.is_set():
            return Backlog({}, 0, 0.0)
        todo = [held for held in self.leases.held.values() if held.stage in ("waiting", "running")]
        now = time.monotonic()
        ages_s = (now - held.sent for held in todo if held.stage == "waiting")
        return Backlog(Counter(held.job.kind for held in todo), queued, max(ages_s, default=0.0))

    async def _first_facts(self) -> QueueFacts:
        while True:
            try:
                return await self.leases.call(self.leases.queue.facts)
            except QueueError as error:
                logger.error("the queue cannot be reached", extra={"fields": {"cause": str(error)}})
                await asyncio.sleep(TROUBLE_PAUSE_S)

    async def _poll(self) -> None:
        while not self.draining:
            most = self.settings.max_in_flight
            if not self.courier.breaker.closed.is_set():
                # A few, so that there is another webhook to ask whether it is the server that is
                # away, or fails at this one alone.
                most = min(most, JOBS_WHILE_AWAY)
            room = most - len(self.leases.held) - self._asked_for
            # One that is full takes ten at once, not one whenever one ends: a call costs as much.
            if room < (BATCH if most >= 4 * BATCH else 1):
                await asyncio.sleep(ROOM_LOOK_S)
                continue
            for message in await self._receive(min(room, BATCH)):
                if self.draining:
                    self._late.append(message.handle)
                else:
                    self._begin(message)

    async def _receive(self, count: int) -> list[Message]:
        self._asked_for += count
        try:
            return await self.leases.receive(self.settings.poll_wait_s, count)
        except QueueError as error:
            logger.warning("receive failed", extra={"fields": {"cause": str(error)}})
            await asyncio.sleep(TROUBLE_PAUSE_S)
            return []
        finally:
            self._asked_for -= count

    def _begin(self, message: Message) -> None:
        held = self.leases.take(message, parse(message.body, message.id))
        if held is not None:
            ticket = self._line.join(held.job.subject, (message.sent_ms, held.number))
            held.task = asyncio.create_task(self._handle(held, ticket))

    async def _handle(self, held: Held, ticket: Ticket) -> None:
        try:
            outcome = await self._do(held)
            if self._tries_again(held, outcome):
                await self._give_back(held, outcome)
                return
            await self._report(held, ticket, outcome)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("job %s was given back", held.job.job_id)
            await self.leases.release([held], self._retry_delay_s(held))
        finally:
            ticket.leave()

    async def _do(self, held: Held) -> Outcome:
        job = held.job
        if isinstance(job, RejectedJob):
            return failed(job, job.error)
        heavy = isinstance(job, AnalysisJob | MixJob)
        queue_s = 0.0  # from when the message was sent to when its job began
        for pause_s in (*LOOK_AGAIN_S, None):
            held.stage = "waiting"
            async with AsyncExitStack() as slots:
                if isinstance(job, MixJob):
                    await slots.enter_async_context(self._mixes.one())
                await slots.enter_async_context((self._heavy if heavy else self._light).one())
                held.stage = "running"
                queue_s = queue_s or time.monotonic() - held.sent
                outcome = await self._attempt(job, again=held.receives > 1)
            outcome.usage.seconds["queue"] = queue_s
            missing = outcome.error and outcome.error.code is ErrorCode.OBJECT_NOT_FOUND
            if not missing or pause_s is None:
                break
            held.stage = "pausing"
            await self._sleep(pause_s)
        return outcome

    async def _attempt(self, job: Job, *, again: bool) -> Outcome:
        try:
            if isinstance(job, CleanupJob):
                return await self.executor.clean()
            return await self.executor.run(job, again=again)
        except Exception as error:
            logger.exception("job %s could not be run", job.job_id)
            return failed(job, internal_error(f"{type(error).__name__}: {error}"))

    def _tries_again(self, held: Held, outcome: Outcome) -> bool:
        if outcome.error is None or not outcome.error.retryable:
            return False
        last_permitted = self._max_receives is not None and held.receives >= self._max_receives
        return held.receives <= self.settings.max_retries and not last_permitted

    def _retry_delay_s(self, held: Held) -> int:
        delay_s = self.settings.retry_delay * 2 ** min(held.receives - 1, 30)
        return int(min(delay_s, LONGEST_RETRY_DELAY_S))

    async def _give_back(self, held: Held, outcome: Outcome) -> None:
        delay_s = self._retry_delay_s(held)
        self.counts["retried"] += 1
        self.metrics.job_retried(held.job.kind, outcome)
        self._log(held, outcome, None, "job will be tried again", {"again_in_s": delay_s})
        await self.leases.release([held], delay_s)

    async def _report(self, held: Held, ticket: Ticket, outcome: Outcome) -> None:
        held.stage = "reporting"
        delivery: Delivery | None = None
        if (webhook := outcome.webhook) is not None:
            started = time.monotonic()
            if not outcome.kept:
                webhook = await self.executor.keep(webhook)
                if webhook.status == "SUCCESS":  # it went well before, and was not deleted in time
                    outcome = replace(outcome, status="SUCCESS", error=None, webhook=webhook)
            async with ticket:
                delivery = await self.courier.deliver(webhook)
            outcome.usage.seconds["webhook"] = time.monotonic() - started
        letter = self._dead_letter(held.job, outcome, delivery)
        if letter is not None:
            if webhook is not None and outcome.status == "FAILURE":
                await self.executor.forget(webhook)  # replayed, it may go well
            buried = await self.leases.call(
                self.leases.queue.bury, held.message, *letter, str(held.job.job_id)
            )
            if not buried and not (delivery and delivery.delivered):
                # Nowhere to keep it, and nobody knows of it: the queue has to keep it.
                await self.leases.release([held], LONGEST_RETRY_DELAY_S)
                self._log(held, outcome, delivery, "job not reported: no dead-letter queue")
                return
            self.counts["dead_letters"] += buried
            self.metrics.add(DEAD_LETTERS_WRITTEN, buried, letter[0])
        self.leases.finish(held, remember_job=letter is None)
        self.counts[f"{held.job.kind}:{outcome.status}"] += 1
        self.metrics.job_ended(held.job.kind, outcome, time.monotonic() - held.sent)
        self.costs.learn(held.job.kind, outcome.usage)
        self._log(held, outcome, delivery, "job")

    def _dead_letter(
        self, job: Job, outcome: Outcome, delivery: Delivery | None
    ) -> tuple[str, str] | None:
        """Code and reason, if the message is to be kept in the dead-letter queue."""
        if delivery is not None and not delivery.delivered:
            refused = delivery.answer.verdict is Verdict.REFUSED
            code = "webhook_refused" if refused else "webhook_undelivered"
            return code, delivery.answer.text
        error = outcome.error
        if error is None:
            return None
        # A failure that nobody is told of, a mix without a stage, is kept as well.
        if error.retryable or isinstance(job, RejectedJob) or outcome.webhook is None:
            return str(error.code), str(error)
        return None

    def _log(
        self,
        held: Held,
        outcome: Outcome,
        delivery: Delivery | None,
        event: str,
        more: dict[str, Any] | None = None,
    ) -> None:
        usage, error = outcome.usage, outcome.error
        fields = {
            "job_id": held.job.job_id,
            "kind": held.job.kind,
            **held.job.ids,
            "outcome": outcome.status,
            "code": error and str(error.code),
            "error": error and error.message,
            "detail": (error and error.detail) or None,
            "attempt": held.receives,
            "seconds": {s: round(usage.seconds[s], 3) for s in STAGES if s in usage.seconds},
            "bytes_in": usage.bytes_in or None,
            "bytes_out": usage.bytes_out or None,
            "audio_s": round(usage.audio_s, 3) or None,
            "peak_memory_mb": usage.peak_memory_mb or None,
            "node": usage.node or None,
            "webhook": delivery and ("delivered" if delivery.delivered else delivery.answer.text),
            "webhook_attempts": delivery and delivery.attempts,
            **outcome.notes,
            **(more or {}),
        }
        well = outcome.status == "SUCCESS" and event == "job"
        level = logging.INFO if well else logging.WARNING
        logger.log(level, event, extra={"fields": fields})

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except Exception:
                logger.exception("%s failed", getattr(work, "__name__", "background work"))

    async def _resize(self) -> None:
        self._slots = await self.executor.slots()
        self._share_slots()

    def _share_slots(self) -> None:
        self._light.resize(max(1, self._slots.light))
        self._heavy.resize(max(1, self._slots.heavy))
        self._mixes.resize(max(0, max(1, self._slots.mixes) - self._other_mixes))

    async def _clean(self) -> None:
        outcome = await self.executor.clean()
        removed = outcome.notes.get("removed")
        if removed:
            logger.info("scratch files removed", extra={"fields": {"files": removed}})
