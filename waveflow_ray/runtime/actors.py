"""The service's actors, and how they are started."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from waveflow_ray.aws.sqs import queue_of
from waveflow_ray.errors import ConfigurationError
from waveflow_ray.logs import LogTail, configure_logging
from waveflow_ray.outcomes import Webhook
from waveflow_ray.runtime.batches import Batches, LostError
from waveflow_ray.runtime.courier import Courier
from waveflow_ray.runtime.executor import RayExecutor
from waveflow_ray.runtime.ingress import Ingress
from waveflow_ray.runtime.leases import Leases
from waveflow_ray.runtime.outbox import Outbox
from waveflow_ray.runtime.placement import (
    ACTOR,
    IN_A_POST,
    INGRESS,
    POSTS_AT_A_TIME,
    REPORTER,
)
from waveflow_ray.settings import SECRETS, Secrets, Settings, signing_keys
from waveflow_ray.webhooks import Answer, Poster, Verdict

logger = logging.getLogger(__name__)

LOG_LOOK_S = 0.1


class ReporterActor:
    """Posts webhooks. A subject is always at the same reporter.

    Args:
        settings: without secrets: what Ray is given, it keeps. They come from the environment of
            the actor's own process.
        fingerprint: of the secrets with which the service was started.
    """

    def __init__(self, settings: Settings, fingerprint: str) -> None:
        configure_logging(settings.log_level, settings.log_format)
        secrets = Secrets(_env_file=None)  # a `.env` where Ray runs may be for something else
        self._outbox = Outbox(self._post)
        self._trouble = "" if secrets.fingerprint == fingerprint else _other_secrets()
        secret, token = secrets.webhook_secret, secrets.webhook_token
        self._poster = Poster(
            settings.webhook_url,
            settings.webhook_timeout_s,
            keys=signing_keys(secret.get_secret_value()) if secret else (),
            token=token.get_secret_value() if token else None,
        )

    async def trouble(self) -> str:
        """Why nothing can be posted, if so."""
        return self._trouble

    async def post(self, webhook: Webhook) -> Answer:
        """See `Outbox.one`."""
        return await self._outbox.one(webhook)

    async def post_some(self, webhooks: Sequence[Webhook]) -> list[Answer | None]:
        """See `Outbox.some`."""
        return await self._outbox.some(webhooks)

    async def _post(self, webhook: Webhook) -> Answer:
        if self._trouble:
            return Answer(Verdict.AWAY, self._trouble)
        return await self._poster.post(webhook)


def _other_secrets() -> str:
    return (
        f"{' or '.join(SECRETS)}: not the same on the Ray node {socket.gethostname()} as where the "
        "service was started; set them in the environment of `ray start` there"
    )


class IngressActor:
    """The ingress as an actor: begins to work when it is made, also after a restart."""

    # Its arguments must be plain values: references could be gone when Ray restarts it.
    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Ray awaits it
        self._tail = LogTail()
        configure_logging(settings.log_level, settings.log_format, tail=self._tail)
        self._settings = settings
        self._reporters = [ray.get_actor(name) for name in reporter_names(settings)]
        self._posts = [
            Batches(partial(self._post_some, index), IN_A_POST, POSTS_AT_A_TIME)
            for index in range(len(self._reporters))
        ]
        queue = await asyncio.to_thread(queue_of, settings)
        leases = Leases(queue, settings.visibility_timeout_s)
        courier = Courier(self._post, settings)
        executor = RayExecutor(settings)
        self._ingress = Ingress(settings, leases, executor, courier)
        self._tasks = [
            asyncio.create_task(self._ingress.run()),
            asyncio.create_task(executor.warm_up()),
        ]
        self._tasks[0].add_done_callback(_end_if_broken)

    async def ready(self) -> None:
        """Returns when the first poll has begun."""
        await self._ingress.ready.wait()

    async def drain(self, timeout_s: float) -> dict[str, int]:
        """See `Ingress.drain`."""
        return await self._ingress.drain(timeout_s)

    async def status(self) -> dict[str, Any]:
        """See `Ingress.status`; with the queue's depths."""
        facts = await asyncio.to_thread(self._ingress.leases.queue.facts)
        queue = {"visible": facts.visible, "in_flight": facts.in_flight, "delayed": facts.delayed}
        return self._ingress.status() | {"queue": queue}

    async def log_lines(self, after: int, wait_s: float = 0.0) -> tuple[int, list[str]]:
        """Log lines from number `after` on, and the number to ask for next.

        Args:
            wait_s: if there are none yet, wait so long for some.
        """
        deadline = time.monotonic() + wait_s
        while True:
            following, lines = self._tail.after(after)
            if lines or time.monotonic() >= deadline:
                return following, lines
            await asyncio.sleep(LOG_LOOK_S)

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


def _end_if_broken(run: asyncio.Task[None]) -> None:
    """An ingress that stopped working ends its process, so that Ray starts it again."""
    if not run.cancelled() and run.exception() is not None:
        logger.critical("the ingress broke", exc_info=run.exception())
        os._exit(1)


@dataclass(frozen=True)
class Service:
    """Handles of the running actors. Unless detached, an actor lives as long as its handle."""

    ingress: Any
    reporters: list[Any]


def start_actors(settings: Settings, *, detached: bool) -> Service:
    """Start reporters and ingress on the connected cluster.

    Args:
        detached: the actors outlive this process (`waveflow start`).

    Raises:
        ValueError: the service runs on this cluster already.
        ConfigurationError: the reporters know other secrets than this process.
    """
    options = {**ACTOR, "lifetime": "detached"} if detached else ACTOR
    plain = settings.without_secrets()
    reporters: list[Any] = [
        ray.remote(**options)(ReporterActor).options(name=name).remote(plain, settings.fingerprint)
        for name in reporter_names(settings)
    ]
    troubles = [trouble for trouble in ray.get([r.trouble.remote() for r in reporters]) if trouble]
    if troubles:
        for reporter in reporters:
            ray.kill(reporter)
        raise ConfigurationError(troubles[0])
    ingress = ray.remote(**options)(IngressActor).options(name=INGRESS).remote(plain)
    return Service(ingress, reporters)


def find_actors() -> Service:
    """The actors of the service that runs on the connected cluster.

    Raises:
        ValueError: it does not run there.
    """
    reporters = [
        ray.get_actor(name) for name in ray.util.list_named_actors() if name.startswith(REPORTER)
    ]
    return Service(ray.get_actor(INGRESS), reporters)


def reporter_names(settings: Settings) -> list[str]:
    """The actors that post webhooks."""
    return [f"{REPORTER}{index}" for index in range(settings.reporters)]
