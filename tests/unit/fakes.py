"""Stand-ins in memory for what the service talks to, and an event loop whose time is virtual."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self, TypeVar
from unittest.mock import patch

from waveflow_ray.aws.sqs import Message, QueueFacts
from waveflow_ray.errors import JobError
from waveflow_ray.messages import AnalysisJob, HashJob, Job, MixJob, envelope
from waveflow_ray.metrics import Metrics
from waveflow_ray.outcomes import COMPLETION, Outcome, Status, Webhook, failed, success
from waveflow_ray.runtime import ingress, leases
from waveflow_ray.runtime.courier import Courier
from waveflow_ray.runtime.ingress import Ingress
from waveflow_ray.runtime.leases import Leases
from waveflow_ray.runtime.slots import Slots
from waveflow_ray.settings import Settings
from waveflow_ray.webhooks import Answer, Verdict

T = TypeVar("T")

HASH = "ab" * 32
DELIVERED = Answer(Verdict.DELIVERED, "201 {}")
FAULT = Answer(Verdict.FAULT, "500 broken")
AWAY = Answer(Verdict.AWAY, "ClientConnectorError: refused")
REFUSED = Answer(Verdict.REFUSED, "400 bad request")


# --- time


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("deadlock: every task waits, and no timer is set")
        if not events and timeout:
            self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Never waits: when there is nothing to do, its clock jumps to the next timer.

    Hours pass in milliseconds, always in the same order. For code without threads and sockets.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time; the runtime's own clocks follow it."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        clock = SimpleNamespace(monotonic=runner.get_loop().time)
        with patch.object(leases, "time", clock), patch.object(ingress, "time", clock):
            return runner.run(main)


def now() -> float:
    """Virtual seconds."""
    return asyncio.get_running_loop().time()


async def settle(seconds: float = 0.5) -> None:
    """Let everything happen that happens within so many virtual seconds."""
    await asyncio.sleep(seconds)


async def until(condition: Callable[[], object], within_s: float = 2000.0) -> None:
    """Wait, in virtual time, for something to come true."""
    deadline = now() + within_s
    while not condition():
        assert now() < deadline, "it never came true"
        await asyncio.sleep(0.05)


# --- settings, jobs, webhooks


def settings_of(**overrides: Any) -> Settings:
    """Settings as they are by default, whatever a .env file says."""
    given = {
        "s3_bucket_name": "bucket",
        "sqs_queue_url": "https://sqs/jobs",
        "webhook_url": "http://main-server",
    }
    return Settings(_env_file=None, **(given | overrides))


def hash_job(job_id: str = "hash-1", **fields: Any) -> HashJob:
    return HashJob(**({"job_id": job_id, "stemId": "stem-1", "filepath": "songs/a.wav"} | fields))


def stem_job(number: int, **fields: Any) -> HashJob:
    """Jobs of different stems."""
    return hash_job(f"hash-{number}", stemId=f"stem-{number}", **fields)


def analysis_job(job_id: str = "analysis-1", **fields: Any) -> AnalysisJob:
    given = {"job_id": job_id, "stemId": "stem-1", "filepath": "songs/a.wav"}
    return AnalysisJob(**(given | fields))


def mix_job(job_id: str = "mix-1", **fields: Any) -> MixJob:
    given = {"job_id": job_id, "stageId": "stage-1", "stem_paths": ["a.wav", "b.wav"]}
    return MixJob(**(given | fields))


def body_of(job: Job) -> str:
    """The message that asks for a job, as the main server writes it."""
    return envelope(type(job), str(job.job_id), **job.model_dump(exclude={"job_id"}))


def result_of(job: Job) -> dict[str, Any]:
    """What doing a job would find."""
    if isinstance(job, AnalysisJob):
        return {
            "audio_data_hash": HASH,
            "waveform_data_path": "waveforms/w.json",
            "file_size": 1000,
            "duration": 2.5,
            "sample_rate": 44100,
            "num_peaks": 4000,
        }
    if isinstance(job, MixJob):
        return {"mixed_file_path": "mixed/m.wav", "waveform_data_path": "waveforms/m.json"}
    return {"audio_hash": HASH, "known_copies": []}


def webhook_of(
    id: str = "msg_1",
    *,
    path: str = COMPLETION,
    body: bytes = b'{"a":1}',
    subject: str = "stem:1",
    status: Status = "SUCCESS",
) -> Webhook:
    return Webhook(id, path, body, subject, status)


# --- the queue


@dataclass
class Stored:
    """A message in the fake queue."""

    id: str
    body: str
    sent_ms: int
    receives: int = 0


@dataclass
class FakeQueue:
    """SQS in memory, at the interface of `aws.sqs.Queue`.

    Attributes:
        visible: what the next receive may bring.
        leased: by receipt handle, what is in hand.
        renewed: batches of receipt handles.
        released: (message id, seconds until it is visible again). It becomes visible only
            if that is 0; later ones stay away, as far as a test is concerned.
        buried: (message id, code, reason) in the dead-letter queue.
        lost: handles whose lease has ended.
        broken: names of methods -> the exceptions of their next calls.
    """

    max_receives: int | None = None
    has_dlq: bool = True
    url: str = "memory://jobs"
    visible: list[Stored] = field(default_factory=list)
    leased: dict[str, Stored] = field(default_factory=dict)
    renewed: list[list[str]] = field(default_factory=list)
    released: list[tuple[str, int]] = field(default_factory=list)
    delete_calls: list[list[str]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    buried: list[tuple[str, str, str]] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    broken: dict[str, list[Exception]] = field(default_factory=dict)
    undeletable: list[set[str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0
    _lease_s: int = 0

    def put(self, body: str | Job, *, receives: int = 0, sent_ms: int | None = None) -> str:
        """Send a message that was received so often before; returns its MessageId."""
        self._count += 1
        text = body_of(body) if isinstance(body, Job) else body
        sent = self._count if sent_ms is None else sent_ms
        self.visible.append(Stored(f"m{self._count}", text, sent, receives))
        self.arrived.set()
        return f"m{self._count}"

    def expire(self, handle: str) -> None:
        """The lease of a message ends; SQS delivers it again."""
        self.visible.append(self.leased.pop(handle))
        self.arrived.set()

    @property
    def empty(self) -> bool:
        return not self.visible and not self.leased

    def facts(self) -> QueueFacts:
        self._fail("facts")
        dlq = "memory://dead" if self.has_dlq else None
        return QueueFacts(len(self.visible), len(self.leased), 0, self.max_receives, dlq)

    def dead_letters(self) -> int | None:
        self._fail("dead_letters")
        return len(self.buried) if self.has_dlq else None

    def receive(self, wait_s: int, visibility_s: int, count: int) -> list[Message]:
        self._fail("receive")
        assert 1 <= count <= 10
        self._lease_s = visibility_s
        messages = []
        for stored in self.visible[:count]:
            stored.receives += 1
            handle = f"{stored.id}/{stored.receives}"
            self.leased[handle] = stored
            messages.append(
                Message(stored.id, handle, stored.body, stored.sent_ms, stored.receives)
            )
        del self.visible[:count]
        return messages

    def set_visibility(self, handles: list[str], visibility_s: int) -> set[str]:
        self._fail("set_visibility")
        assert 1 <= len(handles) <= 10
        if visibility_s == self._lease_s:
            self.renewed.append(list(handles))
            return {handle for handle in handles if handle in self.lost}
        for handle in handles:
            stored = self.leased.pop(handle, None)
            if stored is not None:
                self.released.append((stored.id, visibility_s))
                if visibility_s == 0:
                    self.visible.append(stored)
                    self.arrived.set()
        return set()

    def delete(self, handles: list[str]) -> set[str]:
        self._fail("delete")
        assert 1 <= len(handles) <= 10
        self.delete_calls.append(list(handles))
        stuck = self.undeletable.pop(0) if self.undeletable else set()
        for handle in handles:
            if handle not in stuck:
                stored = self.leased.pop(handle, None)
                self.deleted.append(stored.id if stored else handle)
        return stuck & set(handles)

    def bury(self, message: Message, code: str, reason: str, job_id: str) -> bool:
        self._fail("bury")
        if self.has_dlq:
            self.buried.append((message.id, code, reason))
        return self.has_dlq

    def _fail(self, method: str) -> None:
        if self.broken.get(method):
            raise self.broken[method].pop(0)


class InlineLeases(Leases):
    """Leases without threads: calls to the queue are made in the loop, and polls wait there."""

    queue: FakeQueue  # type: ignore[assignment] # has the methods that are used

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    async def receive(self, wait_s: int, count: int) -> list[Message]:
        messages = await super().receive(wait_s, count)
        if messages:
            return messages
        self.queue.arrived.clear()
        try:
            await asyncio.wait_for(self.queue.arrived.wait(), wait_s)
        except TimeoutError:
            return []
        return await super().receive(wait_s, count)


# --- the cluster


@dataclass
class FakeExecutor:
    """Does jobs at once and well, unless told otherwise.

    Attributes:
        plan: job id -> how its next attempts end: an error, or an exception that is no JobError.
        gates: job id -> what its attempts wait for.
        begun: (job id, virtual time) of every attempt.
        stopped: ids of jobs that were cancelled.
    """

    light: int = 10
    heavy: int = 10
    mixes: int = 10
    plan: dict[str, list[Exception | None]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    begun: list[tuple[str, float]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    cleanings: int = 0
    kept: dict[str, Webhook] = field(default_factory=dict)

    def hold(self, *job_ids: str) -> None:
        """Make jobs wait for `let_go`."""
        for job_id in job_ids:
            self.gates[job_id] = asyncio.Event()

    def let_go(self, job_id: str) -> None:
        self.gates[job_id].set()

    @property
    def ids(self) -> list[str]:
        return [job_id for job_id, _ in self.begun]

    async def keep(self, webhook: Webhook) -> Webhook:
        return self.kept.setdefault(webhook.id.rpartition("_")[0], webhook)

    async def forget(self, webhook: Webhook) -> None:
        del self.kept[webhook.id.rpartition("_")[0]]

    async def run(self, job: Job, *, again: bool) -> Outcome:
        job_id = str(job.job_id)
        self.begun.append((job_id, now()))
        try:
            if job_id in self.gates:
                await self.gates[job_id].wait()
        except asyncio.CancelledError:
            self.stopped.append(job_id)
            raise
        steps = self.plan.get(job_id)
        error = steps.pop(0) if steps else None
        if isinstance(error, JobError):
            return failed(job, error)
        if error is not None:
            raise error
        return Outcome("SUCCESS", success(job, result_of(job), 1.0))

    async def clean(self) -> Outcome:
        self.cleanings += 1
        return Outcome("SUCCESS", None, notes={"removed": []})

    async def slots(self) -> Slots:
        return Slots(self.light, self.heavy, self.mixes)


# --- the main server


@dataclass
class FakeServer:
    """Answers webhooks: each path's or everybody's next answers, else that it is delivered.

    Attributes:
        answers: what the next posts are answered with; the last one stands if `for_ever`.
        sent: (webhook, virtual time), in order.
        never: subjects whose webhooks seem to find nobody, whatever happens to others.
        most_at_once: subject -> how many posts were under way together.
    """

    never: set[str] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)
    standing: Answer = DELIVERED
    takes_s: float = 0.1
    sent: list[tuple[Webhook, float]] = field(default_factory=list)
    under_way: Counter[str] = field(default_factory=Counter)
    most_at_once: Counter[str] = field(default_factory=Counter)

    async def post(self, webhook: Webhook) -> Answer:
        self.sent.append((webhook, now()))
        if webhook.subject in self.never:
            await asyncio.sleep(self.takes_s)
            return AWAY
        for key in (webhook.subject, "all"):
            self.under_way[key] += 1
            self.most_at_once[key] = max(self.most_at_once[key], self.under_way[key])
        try:
            await asyncio.sleep(self.takes_s)
            return self.answers.pop(0) if self.answers else self.standing
        finally:
            for key in (webhook.subject, "all"):
                self.under_way[key] -= 1

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [json.loads(webhook.body) for webhook, _ in self.sent]

    @property
    def times(self) -> list[float]:
        return [when for _, when in self.sent]


class Service:
    """An ingress at work between the fakes. ``async with Service() as service``."""

    def __init__(
        self,
        queue: FakeQueue | None = None,
        executor: FakeExecutor | None = None,
        server: FakeServer | None = None,
        **settings: Any,
    ) -> None:
        self.queue = queue or FakeQueue()
        self.executor = executor or FakeExecutor()
        self.server = server or FakeServer()
        self.settings = settings_of(**settings)
        self.metrics = Metrics()
        visibility_s = self.settings.visibility_timeout_s
        self.leases = InlineLeases(self.queue, visibility_s, self.metrics)  # type: ignore[arg-type]
        self.courier = Courier(self.server.post, self.settings, clock=now, metrics=self.metrics)
        self.ingress = Ingress(
            self.settings, self.leases, self.executor, self.courier, metrics=self.metrics
        )
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.ingress.run())
        await self.until(self.ingress.ready.is_set)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, condition: Callable[[], object], within_s: float = 2000.0) -> None:
        """Wait for something to come true while the ingress works."""
        assert self.task is not None

        def reached() -> bool:
            if self.task.done() and not self.ingress.draining:  # type: ignore[union-attr]
                self.task.result()  # type: ignore[union-attr] # raises what ended it
                raise AssertionError("the ingress ended")
            return bool(condition())

        await until(reached, within_s)

    async def until_done(self) -> None:
        """Wait until the queue is empty and nothing is in hand."""
        await self.until(lambda: self.queue.empty and not self.leases.held)
