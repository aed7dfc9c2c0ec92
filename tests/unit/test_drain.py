"""The end of an ingress: a drain, and another ingress that takes over meanwhile."""

from __future__ import annotations

import asyncio

from tests.unit.fakes import (
    AWAY,
    FakeExecutor,
    FakeQueue,
    Service,
    hash_job,
    mix_job,
    now,
    run,
    settle,
    stem_job,
    until,
)
from waveflow_ray.aws.sqs import QueueError
from waveflow_ray.errors import ErrorCode, JobError

MISSING = JobError(ErrorCode.OBJECT_NOT_FOUND, "The file is not there.", "songs/a.wav")
DOWN = QueueError("memory://jobs: EndpointConnectionError: away")


# --- draining


def test_a_drain_lets_running_jobs_end_and_gives_the_rest_back() -> None:
    """What waits for a worker goes back before what runs is done, reported and deleted."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(light=2)) as service:
            service.executor.hold(*(f"hash-{i}" for i in range(6)))
            for i in range(6):
                service.queue.put(stem_job(i))
            await service.until(lambda: len(service.queue.leased) == 6)
            drain = asyncio.create_task(service.ingress.drain(60))
            await settle(25)
            assert not drain.done()
            assert set(service.queue.released) == {(f"m{i}", 0) for i in (3, 4, 5, 6)}
            assert service.ingress.status()["draining"] is True
            for i in range(6):
                service.executor.let_go(f"hash-{i}")
            assert await drain == {"finished": 2, "given_back": 4}
            assert sorted(service.queue.deleted) == ["m1", "m2"]
            assert service.executor.ids == ["hash-0", "hash-1"]
            assert len(service.queue.visible) == 4
            assert not service.leases.held
            assert service.task is not None
            await service.task

    run(main())


def test_a_drain_does_not_receive_its_own_jobs_again() -> None:
    """Its last polls must not bring what it gave back: each receive uses up a retry."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(light=1), poll_wait_s=10) as service:
            service.executor.hold("hash-0", "hash-1")
            service.queue.put(stem_job(0))
            service.queue.put(stem_job(1))
            await service.until(lambda: len(service.queue.leased) == 2)
            await settle(3)
            service.executor.let_go("hash-0")
            await service.ingress.drain(60)
            assert [(s.id, s.receives) for s in service.queue.visible] == [("m2", 1)]

    run(main())


def test_a_drain_gives_back_what_runs_too_long() -> None:
    """After the timeout the work is stopped, unreported, and somebody else will do it."""

    async def main() -> None:
        async with Service() as service:
            service.executor.hold("hash-1")
            service.queue.put(stem_job(1))
            service.queue.put(stem_job(2))
            await service.until(lambda: service.queue.deleted)
            began = now()
            assert await service.ingress.drain(60) == {"finished": 0, "given_back": 1}
            assert 60 <= now() - began <= 75
            assert service.executor.stopped == ["hash-1"]
            assert service.queue.released == [("m1", 0)]
            assert len(service.server.sent) == 1

    run(main())


def test_a_drain_gives_back_what_the_last_poll_brings() -> None:
    """A long poll cannot be called off without losing what it may bring."""

    async def main() -> None:
        async with Service(poll_wait_s=20) as service:
            await settle(3)
            drain = asyncio.create_task(service.ingress.drain(60))
            await settle(1)
            service.queue.put(stem_job(1))
            await drain
            assert service.executor.ids == []
            assert set(service.queue.released) == {("m1", 0)}
            assert service.queue.leased == {}
            assert [stored.id for stored in service.queue.visible] == ["m1"]

    run(main())


def test_a_drain_gives_back_what_looks_again_for_its_object() -> None:
    """A job in a pause is not worth waiting for."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["hash-1"] = [MISSING] * 4
            service.queue.put(stem_job(1))
            await service.until(lambda: service.executor.ids)
            await settle(0.5)
            result = await service.ingress.drain(60)
            assert result == {"finished": 0, "given_back": 1}
            assert set(service.queue.released) == {("m1", 0)}
            assert service.server.sent == []

    run(main())


def test_a_drain_does_not_wait_for_a_server_that_is_away() -> None:
    """Outcomes that cannot be told in time are given back: the next service tells them."""

    async def main() -> None:
        async with Service() as service:
            service.server.standing = AWAY
            service.queue.put(stem_job(1))
            await service.until(lambda: service.server.sent)
            began = now()
            assert await service.ingress.drain(30) == {"finished": 0, "given_back": 1}
            assert now() - began <= 45
            assert service.queue.released == [("m1", 0)]
            assert service.queue.deleted == []

    run(main())


def test_a_drain_of_an_idle_service_ends_with_its_polls() -> None:
    """Nothing is in hand, so only the polls under way are waited for."""

    async def main() -> None:
        async with Service(poll_wait_s=10) as service:
            await settle(3)
            began = now()
            assert await service.ingress.drain(60) == {"finished": 0, "given_back": 0}
            assert now() - began <= 11
            service.queue.put(stem_job(1))
            await settle(60)
            assert len(service.queue.visible) == 1

    run(main())


def test_a_drain_waits_until_everything_is_deleted() -> None:
    """What was reported must not be done again by the next service."""

    async def main() -> None:
        async with Service() as service:
            service.queue.broken["delete"] = [DOWN] * 3
            service.queue.put(stem_job(1))
            await service.until(lambda: service.server.sent)
            await service.ingress.drain(60)
            assert service.queue.deleted == ["m1"]

    run(main())


def test_leases_are_renewed_while_draining() -> None:
    """A job that may end within the timeout is still ours."""

    async def main() -> None:
        async with Service(visibility_timeout_s=30) as service:
            service.executor.hold("hash-1")
            service.queue.put(stem_job(1))
            await service.until(lambda: service.executor.ids)
            drain = asyncio.create_task(service.ingress.drain(600))
            await settle(300)
            assert len(service.queue.renewed) >= 29
            service.executor.let_go("hash-1")
            await until(drain.done)
            assert service.queue.deleted == ["m1"]

    run(main())


# --- taking over


async def handed_over(old: Service, new: Service) -> None:
    """What the actors do: the new one works while the old one ends what it has in hand."""
    drained = asyncio.create_task(old.ingress.drain(600))
    while not drained.done():
        await asyncio.sleep(0.2)
        new.ingress.make_way(old.ingress.in_hand())
    new.ingress.make_way({})


def test_a_successor_works_while_the_old_one_ends_its_jobs() -> None:
    """But tells nothing about a stem of which the old one has yet to tell, or is telling."""

    async def main() -> None:
        queue = FakeQueue()
        async with Service(queue) as old:
            old.executor.hold("hash-1", "hash-2")
            old.server.takes_s = 30
            queue.put(stem_job(1))
            queue.put(stem_job(2))
            await old.until(lambda: len(old.executor.ids) == 2)
            new = Service(queue)
            following = asyncio.create_task(handed_over(old, new))
            await settle(1)
            async with new:
                queue.put(hash_job("later-1", stemId="stem-1"))
                queue.put(stem_job(3))
                await new.until(lambda: new.server.sent)
                old.executor.let_go("hash-1")
                await settle(10)
                assert len(old.server.sent) == 1  # and not answered yet
                assert [got["stemId"] for got in new.server.payloads] == ["stem-3"]
                assert "later-1" in new.executor.ids
                began = now()
                await new.until(lambda: len(new.server.sent) == 2)
                assert 18 <= now() - began <= 22
                assert not following.done()  # another stem's job does not matter
                old.executor.let_go("hash-2")
                await following
            assert queue.empty

    run(main())


def test_mixes_of_the_old_one_count_among_those_of_its_successor() -> None:
    """Too many together would leave no CPU for what they wait for."""

    async def main() -> None:
        queue = FakeQueue()
        async with Service(queue, FakeExecutor(mixes=2)) as old:
            old.executor.hold("mix-1", "mix-2")
            for number in (1, 2):
                queue.put(mix_job(f"mix-{number}", stageId=f"stage-{number}"))
            await old.until(lambda: len(old.executor.ids) == 2)
            new = Service(queue, FakeExecutor(mixes=2))
            following = asyncio.create_task(handed_over(old, new))
            await settle(1)
            async with new:
                new.executor.hold("mix-3", "mix-4")
                for number in (3, 4):
                    queue.put(mix_job(f"mix-{number}", stageId=f"stage-{number}"))
                await settle(30)
                assert new.executor.ids == []
                old.executor.let_go("mix-1")
                await settle(30)
                assert len(new.executor.ids) == 1
                old.executor.let_go("mix-2")
                await following
                await settle(1)
                assert len(new.executor.ids) == 2

    run(main())
