"""The ingress as an actor, and how the service's actors are started."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import ray

from waveflow_ray.aws.sqs import queue_of
from waveflow_ray.errors import ConfigurationError
from waveflow_ray.logs import LogTail, configure_logging
from waveflow_ray.metrics import Metrics
from waveflow_ray.outcomes import Webhook
from waveflow_ray.release import release
from waveflow_ray.runtime.autoscaler import asker
from waveflow_ray.runtime.batches import Batches, LostError
from waveflow_ray.runtime.courier import Courier
from waveflow_ray.runtime.executor import RayExecutor
from waveflow_ray.runtime.exporter import RayExporter
from waveflow_ray.runtime.handles import Service, hand_over, reporter_names, services
from waveflow_ray.runtime.ingress import Ingress
from waveflow_ray.runtime.leases import Leases
from waveflow_ray.runtime.nodes import alive_nodes
from waveflow_ray.runtime.placement import ACTOR, IN_A_POST, INGRESS, NAMESPACES, POSTS_AT_A_TIME
from waveflow_ray.runtime.reporter import ReporterActor
from waveflow_ray.runtime.subjects import JobsInHand
from waveflow_ray.runtime.watch import Watch
from waveflow_ray.settings import Settings
from waveflow_ray.webhooks import Answer, Verdict

logger = logging.getLogger(__name__)

LOG_LOOK_S = 0.1
TROUBLE_LOOK_S = 2.0
DRIVER_GONE_S = 60.0


class IngressActor:
    """The ingress as an actor: begins to work when it is made, also after a restart.

    Args:
        namespace: where its reporters are.
        replaces: id of the ingress to take over from. When this one has made itself ready, that one
            takes no more messages, and is ended when its jobs are. Whoever started this one may be
            gone by then.
    """

    # Its arguments must be plain values: references could be gone when Ray restarts it.
    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: Settings, namespace: str, replaces: str | None = None
    ) -> None:
        self._tail = LogTail()
        configure_logging(settings.log_level, settings.log_format, tail=self._tail)
        self._settings = settings
        self._reporters = [ray.get_actor(name, namespace) for name in reporter_names(settings)]
        self._posts = [
            Batches(partial(self._post_some, index), IN_A_POST, POSTS_AT_A_TIME)
            for index in range(len(self._reporters))
        ]
        queue = await asyncio.to_thread(queue_of, settings)
        metrics = Metrics()
        leases = Leases(queue, settings.visibility_timeout_s, metrics)
        courier = Courier(self._post, settings, metrics=metrics)
        self._executor = RayExecutor(settings)
        self._ingress = Ingress(settings, leases, self._executor, courier, metrics=metrics)
        flush = RayExporter(metrics).flush
        self._ask_for_cpus = asker()
        self._watch = Watch(self._ingress, metrics, _alive_nodes, self._ask_for_cpus, flush)
        self._taken_over = asyncio.Event()
        if replaces is None:
            self._taken_over.set()
        self._beside: list[asyncio.Task[None]] = []
        self._succession: asyncio.Task[None] | None = None
        self._held_at = -math.inf
        self._work = asyncio.create_task(self._run(replaces))
        self._work.add_done_callback(self._end_if_broken)

    async def _run(self, replaces: str | None) -> None:
        await self._reporters_are_well()
        gc.freeze()  # see the reporter
        if replaces is None:
            self._beside = [asyncio.create_task(self._executor.warm_up())]
        else:
            await self._executor.compile()
            me = ray.get_runtime_context().current_actor
            await self._executor.warm_up(me.taken_over.remote())
            others = hand_over(replaces, self._settings.drain_timeout_s)
            self._ingress.make_way(await anext(others))
            self._taken_over.set()
            self._succession = asyncio.create_task(self._make_way(others))
        self._beside.append(asyncio.create_task(self._watch.run()))
        await self._ingress.run()

    async def _reporters_are_well(self) -> None:
        """Wait until they can report: nothing is taken from the queue before."""
        for reporter in self._reporters:
            while trouble := await _trouble(reporter):
                logger.error("nothing can be reported", extra={"fields": {"cause": trouble}})
                await asyncio.sleep(TROUBLE_LOOK_S)

    async def _make_way(self, others: AsyncIterator[JobsInHand]) -> None:
        async for in_hand in others:
            self._ingress.make_way(in_hand)

    async def ready(self) -> None:
        """Returns when the first poll has begun, and no other service is left that it replaced.

        Raises why it cannot take over, if so.
        """
        ready = asyncio.create_task(self._ingress.ready.wait())
        done, _ = await asyncio.wait({ready, self._work}, return_when=asyncio.FIRST_COMPLETED)
        if self._work in done:
            self._work.result()
        if self._succession is not None:
            await asyncio.shield(self._succession)

    async def in_charge(self) -> bool:
        """Whether it is this one that takes messages."""
        return self._taken_over.is_set() and not self._ingress.draining

    async def taken_over(self) -> None:
        """Returns when it is this one that takes messages, or was."""
        await self._taken_over.wait()

    async def in_hand(self) -> JobsInHand:
        """See `Ingress.in_hand`."""
        return self._ingress.in_hand()

    async def drain(self, timeout_s: float, *, succeeded: bool = False) -> dict[str, int]:
        """See `Ingress.drain`. The autoscaler need not keep anything for this service then.

        Args:
            succeeded: by another service, which asks for what it needs.
        """
        result = await self._ingress.drain(timeout_s)
        if self._succession is not None:
            await asyncio.shield(self._succession)
        if not succeeded:
            await self._ask_for_cpus(0)
        return result

    async def status(self) -> dict[str, Any]:
        """See `Ingress.status`; with the queue's depths, which are up to 10 s old."""
        facts = await self._watch.facts()
        has_driver = time.monotonic() - self._held_at < DRIVER_GONE_S
        queue = {"visible": facts.visible, "in_flight": facts.in_flight, "delayed": facts.delayed}
        more = {"queue": queue, "release": release(), "has_driver": has_driver}
        return self._ingress.status() | more

    async def held(self) -> None:
        """The driver lives."""
        self._held_at = time.monotonic()

    async def log_lines(self, after: int, wait_s: float = 0.0) -> tuple[int, list[str]]:
        """Log lines from number `after` on, and the number to ask for next.

        Args:
            wait_s: if there are none yet, wait so long for some.
        """
        await self.held()
        deadline = time.monotonic() + wait_s
        while True:
            following, lines = self._tail.after(after)
            if lines or time.monotonic() >= deadline:
                return following, lines
            await asyncio.sleep(LOG_LOOK_S)

    def _end_if_broken(self, run: asyncio.Task[None]) -> None:
        """An ingress that stopped working ends its process, so that Ray starts it again.

        One that is not in charge yet stays, and whoever waits for it is told.
        """
        if not run.cancelled() and run.exception() is not None:
            logger.critical("the ingress broke", exc_info=run.exception())
            if self._taken_over.is_set():
                os._exit(1)

    async def _post(self, webhook: Webhook) -> Answer:
        index = zlib.crc32(webhook.subject.encode()) % len(self._reporters)
        try:
            answer = await self._posts[index].once(webhook)
            if answer is None:
                post: Any = self._reporters[index].post.options(name=webhook.path)
                answer = await post.remote(webhook)
        except (LostError, ray.exceptions.RayError) as error:  # it died; Ray starts it again
            return Answer(Verdict.FAULT, str(error))
        return answer

    async def _post_some(
        self, index: int, webhooks: Sequence[Webhook]
    ) -> AsyncIterator[list[tuple[int, Answer | None]]]:
        """Webhooks of one reporter in one call; see `Batches`."""
        paths = {webhook.path for webhook in webhooks}
        name = paths.pop() if len(paths) == 1 else "webhooks"
        post: Any = self._reporters[index].post_some.options(name=name)
        yield list(enumerate(await post.remote(webhooks)))


async def _trouble(reporter: Any) -> str:
    """Why it can post nothing, if so."""
    try:
        return str(await reporter.trouble.remote())
    except ray.exceptions.RayError as error:  # it died; Ray starts it again
        return str(error)


async def _alive_nodes() -> list[dict[str, Any]]:
    return await asyncio.to_thread(alive_nodes)


def start_actors(settings: Settings, *, detached: bool, replaces: Service | None = None) -> Service:
    """Start reporters and ingress on the connected cluster.

    Args:
        detached: the actors outlive this process (`waveflow start`).
        replaces: the running service, which the new ingress takes over from.

    Raises:
        ValueError: the service runs on this cluster already.
        ConfigurationError: the reporters know other secrets than this process.
        RayError: the reporters do not come up.
    """
    used = {service.namespace for service in services()}
    if used - {replaces and replaces.namespace}:
        raise ValueError(f"in use: {', '.join(sorted(used))}")
    namespace = next(name for name in NAMESPACES if name not in used)
    options = {**ACTOR, "namespace": namespace}
    if detached:
        options["lifetime"] = "detached"
    plain = settings.without_secrets()
    reporters: list[Any] = [
        ray.remote(**options)(ReporterActor).options(name=name).remote(plain, settings.fingerprint)
        for name in reporter_names(settings)
    ]
    actor = ray.remote(**options)(IngressActor).options(name=INGRESS)
    ingress = actor.remote(plain, namespace, replaces and replaces.ingress_id)
    service = Service(ingress, reporters, namespace)
    try:
        troubles = ray.get([reporter.trouble.remote() for reporter in reporters])
        if any(troubles):
            raise ConfigurationError(next(filter(None, troubles)))
    except (ConfigurationError, ray.exceptions.RayError):
        service.end()
        raise
    return service
