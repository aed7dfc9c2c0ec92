"""The service on a Ray cluster: found by the names of its actors, drained, ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import ray

from waveflow_ray.release import release
from waveflow_ray.runtime.placement import INGRESS, NAMESPACES, REPORTER
from waveflow_ray.runtime.subjects import JobsInHand
from waveflow_ray.settings import Settings

ANSWER_TIMEOUT_S = 10.0
LOOK_AGAIN_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """Handles of the running actors. Unless detached, an actor lives as long as its handle."""

    ingress: Any
    reporters: list[Any]
    namespace: str

    @property
    def ingress_id(self) -> str:
        """The same as long as Ray restarts the actor."""
        actor_id: str = self.ingress._actor_id.hex()
        return actor_id

    def end(self) -> None:
        """End the actors, whatever they are at."""
        for actor in (self.ingress, *self.reporters):
            ray.kill(actor)


def find_actors() -> Service:
    """The actors of the service that runs on the connected cluster.

    While one takes over from another, it is the one that takes messages from the queue.

    Raises:
        ValueError: it does not run there.
    """
    found = services()
    if len(found) > 1:
        found.sort(key=_not_in_charge)
    if not found:
        raise ValueError("there is no ingress")
    return found[0]


def _not_in_charge(service: Service) -> bool:
    try:
        in_charge: bool = ray.get(service.ingress.in_charge.remote(), timeout=ANSWER_TIMEOUT_S)
    except ray.exceptions.RayError:
        return True
    return not in_charge


def services() -> list[Service]:
    """What has an ingress; two while one takes over from the other."""
    actors: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    found = []
    for namespace in NAMESPACES:
        names = [actor["name"] for actor in actors if actor["namespace"] == namespace]
        if INGRESS in names:
            reporters = [ray.get_actor(n, namespace) for n in names if n.startswith(REPORTER)]
            found.append(Service(ray.get_actor(INGRESS, namespace), reporters, namespace))
    return found


def reporter_names(settings: Settings) -> list[str]:
    """The actors that post webhooks."""
    return [f"{REPORTER}{index}" for index in range(settings.reporters)]


async def hand_over(ingress_id: str, drain_timeout_s: float) -> AsyncIterator[JobsInHand]:
    """Have the service of that ingress take no more messages, then end it.

    Yields what it has in hand (`Ingress.in_hand`), again and again, and nothing when it is ended.
    """
    running = await asyncio.to_thread(services)
    old = next((service for service in running if service.ingress_id == ingress_id), None)
    if old is None:
        yield {}  # it is gone, or this ingress did so before it was restarted
        return
    logger.info("taking over", extra={"fields": {"release": release()}})
    drained = asyncio.ensure_future(old.ingress.drain.remote(drain_timeout_s, succeeded=True))
    try:
        while not drained.done():
            yield await old.ingress.in_hand.remote()
            await asyncio.wait({drained}, timeout=LOOK_AGAIN_S)
        await drained
    except ray.exceptions.RayError as error:  # what it held comes back when its leases end
        fields = {"cause": f"{type(error).__name__}: {error}"[:500]}
        logger.warning("the old ingress did not drain", extra={"fields": fields})
    await asyncio.to_thread(old.end)
    yield {}
