"""What the ingress holds of the queue: every job's messages, their renewal and their end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from waveflow_ray.aws.sqs import BATCH, Message, Queue, QueueError
from waveflow_ray.messages import Job
from waveflow_ray.metrics import LEASES_LOST, Metrics

logger = logging.getLogger(__name__)

REMEMBERED = 20_000
REMEMBERED_S = 3600.0
LONGEST_LEASE_S = 11 * 3600.0  # SQS ends a lease 12 h after the receive, whatever we renew
DELETE_TRIES = 8
DELETES_AT_A_TIME = 4
GATHER_S = 0.1
"""A call of SQS costs as much CPU for one message as for ten, some milliseconds."""

T = TypeVar("T")
Stage = Literal["waiting", "running", "pausing", "reporting"]


@dataclass(eq=False)
class Held:
    """One job in hand, and every message that asks for it.

    A message delivered twice, or sent twice, is one job: the later copy joins the first.
    """

    job: Job
    messages: dict[str, Message]
    number: int
    received: float
    expires: float
    stage: Stage = "waiting"
    task: asyncio.Task[None] | None = None
    sent: float = 0.0  # as `received`: seconds of the monotonic clock

    @property
    def message(self) -> Message:
        """The message that came first."""
        return next(iter(self.messages.values()))

    @property
    def receives(self) -> int:
        """How often the job was received."""
        return max(message.receives for message in self.messages.values())

    @property
    def handles(self) -> list[str]:
        return [message.handle for message in self.messages.values()]


@dataclass
class Memory:
    """Recently finished jobs and messages, bounded in number and age."""

    size: int = REMEMBERED
    age_s: float = REMEMBERED_S
    clock: Callable[[], float] = time.monotonic
    _when: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def add(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._when.pop(key, None)
            self._when[key] = self.clock()
        while len(self._when) > self.size:
            self._when.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        when = self._when.get(key)
        return when is not None and self.clock() - when <= self.age_s


class Leases:
    """Receives, renews, releases and deletes. All state lives in one event loop.

    Args:
        queue: blocking; its calls run in threads of this object's own.
        visibility_s: the lease of a message, renewed at a third of it.
        metrics: told of renewals and lost leases.
    """

    def __init__(self, queue: Queue, visibility_s: int, metrics: Metrics | None = None) -> None:
        self.queue = queue
        self.visibility_s = visibility_s
        self.held: dict[str, Held] = {}
        self.finished = Memory()
        self.lost: Counter[str] = Counter()
        self._metrics = metrics or Metrics()
        self._numbers = 0
        # A renewal under way must not undo a release that comes after it.
        self._changing = asyncio.Lock()
        self._deletes: asyncio.Queue[str] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="sqs")

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Run a blocking call of the queue's in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def receive(self, wait_s: int, count: int) -> list[Message]:
        """Long-poll for messages."""
        return await self.call(self.queue.receive, wait_s, self.visibility_s, count)

    def take(self, message: Message, job: Job) -> Held | None:
        """Begin to hold a job; None if it is done already, or in hand: then nothing is to do."""
        fingerprint = job.fingerprint
        if message.id in self.finished or fingerprint in self.finished:
            self._deletes.put_nowait(message.handle)
            return None
        now = time.monotonic()
        twin = self.held.get(fingerprint)
        if twin is not None:
            twin.messages[message.id] = message  # a message that came again has a new handle
            twin.expires = now + self.visibility_s
            return None
        self._numbers += 1
        held = Held(job, {message.id: message}, self._numbers, now, now + self.visibility_s)
        held.sent = now - message.age_s
        self.held[fingerprint] = held
        return held

    def finish(self, held: Held, *, remember_job: bool) -> None:
        """The job is over: delete its messages, last of all.

        Args:
            remember_job: the same job sent again is a repetition. False for what went to the
                dead-letter queue: an operator may replay it.
        """
        self.held.pop(held.job.fingerprint, None)
        self.finished.add(held.messages)
        if remember_job:
            self.finished.add([held.job.fingerprint])
        for handle in held.handles:
            self._deletes.put_nowait(handle)

    async def release(self, jobs: Iterable[Held], visibility_s: int = 0) -> None:
        """Give jobs back to the queue; they become visible after `visibility_s`."""
        handles = []
        for held in jobs:
            if self.held.get(held.job.fingerprint) is held:
                del self.held[held.job.fingerprint]
                handles += held.handles
        await self.release_handles(handles, visibility_s)

    async def release_handles(self, handles: list[str], visibility_s: int = 0) -> None:
        """Give messages back to the queue. If that fails they come back when the lease ends."""
        for start in range(0, len(handles), BATCH):
            batch = handles[start : start + BATCH]
            try:
                async with self._changing:
                    await self.call(self.queue.set_visibility, batch, visibility_s)
            except QueueError as error:
                logger.warning("messages not given back", extra={"fields": {"cause": str(error)}})

    def forget(self, held: Held) -> None:
        """Someone else may have the job: hold it no longer, touch its messages no more."""
        self.held.pop(held.job.fingerprint, None)
        if held.task is not None:
            held.task.cancel()

    async def renew_for_ever(self) -> None:
        """Renew every lease in time; give up the jobs whose lease is lost."""
        while True:
            await asyncio.sleep(self.visibility_s / 3)
            await self.renew()

    async def renew(self) -> None:
        """Renew all leases once, in batches, several at a time."""
        started = time.monotonic()
        old = [h for h in self.held.values() if started - h.received > LONGEST_LEASE_S]
        for held in old:
            if held.task is not None:
                held.task.cancel()
        await self.release(old)
        async with self._changing:
            await self._renew_held()

    async def _renew_held(self) -> None:
        started = time.monotonic()
        owners = {handle: held for held in self.held.values() for handle in held.handles}
        handles = list(owners)
        lost: set[str] = set()
        failed: set[str] = set()

        async def renew_batch(batch: list[str]) -> None:
            try:
                lost.update(await self.call(self.queue.set_visibility, batch, self.visibility_s))
            except QueueError as error:
                failed.update(batch)
                logger.warning("leases not renewed", extra={"fields": {"cause": str(error)}})

        await asyncio.gather(
            *(renew_batch(handles[i : i + BATCH]) for i in range(0, len(handles), BATCH))
        )
        self._metrics.leases_renewed(len(handles) - len(lost) - len(failed), len(lost), len(failed))
        now = time.monotonic()
        for held in list(self.held.values()):
            mine = [handle for handle in held.handles if owners.get(handle) is held]
            if any(handle not in lost and handle not in failed for handle in mine):
                held.expires = started + self.visibility_s
            elif mine and (all(handle in lost for handle in mine) or now > held.expires):
                self.lost[held.job.kind] += 1
                self._metrics.add(LEASES_LOST, 1, held.job.kind)
                logger.warning(
                    "lease lost", extra={"fields": {"job_id": held.job.job_id, "stage": held.stage}}
                )
                if held.stage != "reporting":
                    self.forget(held)

    async def delete_for_ever(self) -> None:
        """Delete finished messages in batches: of what ends within a moment, or of ten at once."""
        free = asyncio.Semaphore(DELETES_AT_A_TIME)
        async with asyncio.TaskGroup() as group:
            while True:
                batch = [await self._deletes.get()]
                if self._deletes.qsize() < BATCH - 1:
                    await asyncio.sleep(GATHER_S)
                while len(batch) < BATCH and not self._deletes.empty():
                    batch.append(self._deletes.get_nowait())
                await free.acquire()
                group.create_task(self._delete_batch(batch, free))

    async def _delete_batch(self, batch: list[str], free: asyncio.Semaphore) -> None:
        try:
            await self._delete(list(dict.fromkeys(batch)))
        finally:
            free.release()
            for _ in batch:
                self._deletes.task_done()

    async def deleted(self) -> None:
        """Wait until everything finished so far is deleted."""
        await self._deletes.join()

    async def _delete(self, handles: list[str]) -> None:
        for attempt in range(DELETE_TRIES):
            try:
                handles = list(await self.call(self.queue.delete, handles))
            except QueueError as error:
                logger.warning("messages not deleted", extra={"fields": {"cause": str(error)}})
            else:
                if not handles:
                    return
            await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
        # They will be delivered again, recognised as finished, and deleted then.
