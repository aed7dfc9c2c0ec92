"""How many jobs one ingress can lease, have done, report and delete: the work itself is nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray

from benchmarks.service import Store, store
from benchmarks.timing import Figure
from waveflow_ray.aws.sqs import BATCH, Queue, queue_of
from waveflow_ray.messages import HashJob, Job, envelope
from waveflow_ray.outcomes import Outcome, Webhook, success
from waveflow_ray.runtime import app
from waveflow_ray.runtime.batches import Batches
from waveflow_ray.runtime.courier import Courier
from waveflow_ray.runtime.ingress import Ingress
from waveflow_ray.runtime.leases import Leases
from waveflow_ray.runtime.lightwork import IN_A_TASK
from waveflow_ray.runtime.placement import ACTOR, LIGHT
from waveflow_ray.runtime.slots import Slots
from waveflow_ray.settings import Settings
from waveflow_ray.webhooks import Answer, Verdict

RESULT = {"audio_hash": "ab" * 32, "known_copies": []}
AT_A_TIME = 4
TARGETS = {1: 500.0, IN_A_TASK: 1000.0}


def nothing(jobs: Sequence[Job]) -> list[Outcome]:
    """Outcomes of jobs that nobody did."""
    return [Outcome("SUCCESS", success(job, RESULT, 0.0), kept=True) for job in jobs]


class Idle:
    """An executor whose tasks do nothing. See `Executor`."""

    def __init__(self, in_a_task: int) -> None:
        self._task: Any = ray.remote(**LIGHT)(nothing).options(name="nothing")
        self._batches: Batches[Job, Outcome] = Batches(self._send, in_a_task, AT_A_TIME)
        self._in_a_task = in_a_task

    async def _send(self, jobs: Sequence[Job]) -> AsyncIterator[list[tuple[int, Outcome]]]:
        yield list(enumerate(await self._task.remote(jobs)))

    async def run(self, job: Job, *, again: bool) -> Outcome:
        return await self._batches.once(job)

    async def keep(self, webhook: Webhook) -> Webhook:
        return webhook

    async def forget(self, webhook: Webhook) -> None:
        pass

    async def clean(self) -> Outcome:
        return Outcome("SUCCESS", None)

    async def slots(self) -> Slots:
        return Slots(AT_A_TIME * self._in_a_task, 1, 1)


class Counting:
    """An ingress in an actor of its own, whose webhooks are delivered at once."""

    async def run(self, settings: Settings, in_a_task: int, count: int) -> tuple[float, float]:
        """Seconds from the first message to the last deletion, and of this process's CPU."""
        leases = Leases(queue_of(settings), settings.visibility_timeout_s)

        async def post(_webhook: Webhook) -> Answer:
            return Answer(Verdict.DELIVERED, "201")

        ingress = Ingress(settings, leases, Idle(in_a_task), Courier(post, settings))
        started, cpu_s = time.monotonic(), time.process_time()
        working = asyncio.create_task(ingress.run())
        while ingress.counts["hash:SUCCESS"] < count:
            await asyncio.sleep(0.01)
        await leases.deleted()
        passed, cpu_s = time.monotonic() - started, time.process_time() - cpu_s
        await ingress.drain(10.0)
        working.cancel()
        return passed, cpu_s


class Alone:
    """An actor that awaits no-op tasks, and does nothing else: what Ray alone permits."""

    async def run(self, count: int, at_a_time: int) -> tuple[float, float]:
        """Seconds for so many tasks, and of this process's CPU."""
        task: Any = ray.remote(**LIGHT)(nothing).options(name="nothing")
        free = asyncio.Semaphore(at_a_time)

        async def one() -> None:
            async with free:
                await task.remote([])

        await asyncio.gather(*(one() for _ in range(at_a_time)))  # the workers' start
        started, cpu_s = time.monotonic(), time.process_time()
        await asyncio.gather(*(one() for _ in range(count)))
        return time.monotonic() - started, time.process_time() - cpu_s


def ingress_rates(count: int) -> list[Figure]:
    """Jobs/s of one ingress, and its CPU, with a no-op task for each job, and for ten."""
    figures = []
    with store() as aws:
        settings = aws.settings("filled in below", "http://127.0.0.1:9", poll_wait_s=1)
        app.connect(settings, may_start=True, num_cpus=2)
        try:
            for in_a_task in (1, IN_A_TASK):
                queue = _filled(aws, f"noop-{in_a_task}", count)
                actor = ray.remote(**ACTOR)(Counting).remote()
                own = settings.model_copy(update={"sqs_queue_url": queue.url})
                seconds, cpu_s = ray.get(actor.run.remote(own, in_a_task, count))
                ray.kill(actor)
                name = f"one ingress, {in_a_task} no-op jobs to a task"
                if in_a_task == 1:
                    name = "one ingress, a no-op task for each job"
                figures += [
                    Figure(name, count / seconds, "jobs/s", TARGETS[in_a_task], at_least=True),
                    Figure(f"{name}: its CPU", cpu_s / count * 1000, "ms/job"),
                ]
            alone: Any = ray.remote(**ACTOR)(Alone).remote()
            seconds, cpu_s = ray.get(alone.run.remote(count, AT_A_TIME * IN_A_TASK))
            name = "Ray alone, no-op tasks of an asyncio actor"
            figures += [
                Figure(name, count / seconds, "tasks/s"),
                Figure(f"{name}: its CPU", cpu_s / count * 1000, "ms/task"),
            ]
        finally:
            ray.shutdown()
    return figures


def _filled(aws: Store, name: str, count: int) -> Queue:
    queue = aws.queue(name)
    for start in range(0, count, BATCH):
        bodies = (
            envelope(HashJob, f"n{number}", stemId=f"n{number}", filepath="a.wav")
            for number in range(start, min(start + BATCH, count))
        )
        entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)]
        queue.client.send_message_batch(QueueUrl=queue.url, Entries=entries)  # type: ignore[arg-type]
    return queue
