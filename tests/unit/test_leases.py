from __future__ import annotations

import asyncio
import threading

import pytest

from tests.unit.fakes import (
    FakeQueue,
    InlineLeases,
    analysis_job,
    hash_job,
    now,
    run,
    settle,
    until,
)
from waveflow_ray.aws.sqs import QueueError
from waveflow_ray.messages import Job
from waveflow_ray.runtime.leases import Held, Leases, Memory

LEASE_S = 90
DOWN = QueueError("memory://jobs: EndpointConnectionError: away")


def leases_of(queue: FakeQueue) -> InlineLeases:
    return InlineLeases(queue, LEASE_S)  # type: ignore[arg-type] # a stand-in


async def hold(leases: InlineLeases, *jobs: Job, running: bool = True) -> list[Held]:
    """Send jobs, receive them, take them; their work never ends by itself."""
    for job in jobs:
        leases.queue.put(job)
    held = []
    for start in range(0, len(jobs), 10):
        messages = await leases.receive(0, 10)
        for message, job in zip(messages, jobs[start : start + 10], strict=True):
            one = leases.take(message, job)
            assert one is not None
            if running:
                one.stage = "running"
                one.task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
            held.append(one)
    return held


async def receive(leases: InlineLeases, job: Job) -> Held | None:
    """Send a job as another message, receive it, take it."""
    leases.queue.put(job)
    (message,) = await leases.receive(0, 10)
    return leases.take(message, job)


async def deleted(leases: InlineLeases) -> None:
    """Have everything deleted that is finished so far."""
    deleting = asyncio.create_task(leases.delete_for_ever())
    await leases.deleted()
    deleting.cancel()


# --- twins


def test_a_job_sent_twice_is_held_once() -> None:
    """A second message for a job in hand joins the first; both are deleted with it."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        assert await receive(leases, hash_job()) is None
        assert list(held.messages) == ["m1", "m2"]
        assert held.message.id == "m1"
        assert len(leases.held) == 1
        leases.finish(held, remember_job=True)
        await deleted(leases)
        assert queue.deleted == ["m1", "m2"]
        assert not leases.held

    run(main())


def test_a_message_delivered_twice_is_held_by_its_new_handle() -> None:
    """SQS delivered it again: the new receipt handle is the one that renews and deletes."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        queue.expire("m1/1")  # its lease ended unnoticed
        (message,) = await leases.receive(0, 10)
        assert leases.take(message, hash_job()) is None
        assert held.handles == ["m1/2"]
        assert held.receives == 2

    run(main())


def test_other_jobs_are_held_beside_it() -> None:
    """Another field or another id is another job."""

    async def main() -> None:
        leases = leases_of(FakeQueue())
        jobs = [hash_job(), hash_job("hash-2"), hash_job(stageId="g"), analysis_job("hash-1")]
        held = await hold(leases, *jobs)
        assert len(leases.held) == 4
        assert [one.number for one in held] == sorted(one.number for one in held)

    run(main())


# --- what is finished


def test_a_finished_job_is_recognised_when_it_is_sent_again() -> None:
    """The same job in a new message is deleted, not done."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        leases.finish(held, remember_job=True)
        assert await receive(leases, hash_job()) is None
        assert not leases.held
        await deleted(leases)
        assert queue.deleted == ["m1", "m2"]

    run(main())


def test_a_finished_message_is_recognised_when_it_is_delivered_again() -> None:
    """Its deletion failed, or SQS keeps a copy: it is deleted again, not done again."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        queue.expire("m1/1")
        leases.finish(held, remember_job=False)
        (message,) = await leases.receive(0, 10)
        assert leases.take(message, hash_job()) is None
        await deleted(leases)
        assert queue.delete_calls == [["m1/1", "m1/2"]]

    run(main())


def test_a_job_from_the_dead_letter_queue_can_be_replayed() -> None:
    """An operator sends it again as a new message: it is a new try."""

    async def main() -> None:
        leases = leases_of(FakeQueue())
        (held,) = await hold(leases, hash_job())
        leases.finish(held, remember_job=False)
        again = await receive(leases, hash_job())
        assert again is not None
        assert list(again.messages) == ["m2"]

    run(main())


def test_memory_is_bounded_in_number() -> None:
    """The oldest are forgotten first; what is added again is new."""
    memory = Memory(size=3)
    memory.add(["a", "b", "c"])
    memory.add(["a", "d"])
    assert [key in memory for key in "abcd"] == [True, False, True, True]


def test_memory_is_bounded_in_age() -> None:
    """After an hour the same job is a new one."""
    time = 0.0
    memory = Memory(age_s=3600, clock=lambda: time)
    memory.add(["a"])
    time = 3600.0
    assert "a" in memory
    memory.add(["b"])
    time = 3601.0
    assert ("a" in memory, "b" in memory) == (False, True)


# --- renewing


def test_leases_are_renewed_in_batches_in_time() -> None:
    """Every third of the lease, ten at a time, all messages of all jobs."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        await hold(leases, *(hash_job(f"hash-{i}") for i in range(24)))
        await receive(leases, hash_job("hash-0"))
        renewing = asyncio.create_task(leases.renew_for_ever())
        await settle(LEASE_S / 3 + 1)
        assert sorted(len(batch) for batch in queue.renewed) == [5, 10, 10]
        assert len({handle for batch in queue.renewed for handle in batch}) == 25
        await settle(LEASE_S)
        assert len(queue.renewed) == 4 * 3
        assert not leases.lost
        renewing.cancel()

    run(main())


def test_nothing_in_hand_asks_nothing_of_the_queue() -> None:
    """An idle service makes no calls but its polls."""

    async def main() -> None:
        queue = FakeQueue()
        await leases_of(queue).renew()
        assert queue.renewed == []

    run(main())


@pytest.mark.parametrize("stage", ["waiting", "running", "pausing"])
def test_a_job_whose_lease_is_lost_is_cancelled(stage: str) -> None:
    """Somebody else may have it now: it is stopped, and its message is not touched again."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        gone, kept = await hold(leases, hash_job("gone"), hash_job("kept"))
        gone.stage = stage  # type: ignore[assignment] # a parameter
        queue.lost = {"m1/1"}
        await leases.renew()
        await settle()
        assert gone.task is not None
        assert gone.task.cancelled()
        assert list(leases.held.values()) == [kept]
        assert leases.lost == {"hash": 1}
        assert (queue.released, queue.deleted) == ([], [])

    run(main())


def test_a_job_that_reports_is_not_stopped_for_its_lease() -> None:
    """Its webhook may be on its way already; a redelivery finds it in hand and joins it."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        held.stage = "reporting"
        queue.lost = {"m1/1"}
        await leases.renew()
        await settle()
        assert held.task is not None
        assert not held.task.done()
        queue.expire("m1/1")
        (message,) = await leases.receive(0, 10)
        assert leases.take(message, hash_job()) is None
        assert held.handles == ["m1/2"]

    run(main())


def test_one_live_lease_of_two_is_enough() -> None:
    """A job sent twice goes on as long as one of its messages is leased."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        await receive(leases, hash_job())
        queue.lost = {"m1/1"}
        await leases.renew()
        assert list(leases.held.values()) == [held]
        queue.lost = {"m1/1", "m2/1"}
        await leases.renew()
        assert not leases.held

    run(main())


def test_failures_to_renew_are_tolerated_until_the_lease_ends() -> None:
    """SQS may be away for a while; only when the lease is over is the job given up."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        queue.broken["set_visibility"] = [DOWN] * 100
        renewing = asyncio.create_task(leases.renew_for_ever())
        await settle(LEASE_S - 1)
        assert list(leases.held.values()) == [held]
        await settle(LEASE_S / 3 + 2)
        assert held.task is not None
        assert held.task.cancelled()
        assert not leases.held
        renewing.cancel()

    run(main())


def test_a_renewal_gives_the_whole_time_again() -> None:
    """After one that worked, the next failures are tolerated as long as the first."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        renewing = asyncio.create_task(leases.renew_for_ever())
        queue.broken["set_visibility"] = [DOWN, DOWN]  # at 30 s and 60 s; at 90 s it works
        await settle(LEASE_S + 1)
        queue.broken["set_visibility"] = [DOWN, DOWN]
        await settle(LEASE_S)
        assert list(leases.held.values()) == [held]
        assert held.expires > now() + LEASE_S / 2
        renewing.cancel()

    run(main())


def test_a_job_is_given_back_before_sqs_ends_its_lease_for_good() -> None:
    """12 h after the receive no renewal helps: the message goes back while it is ours."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        renewing = asyncio.create_task(leases.renew_for_ever())
        await settle(10 * 3600)
        assert list(leases.held.values()) == [held]
        await settle(1.5 * 3600)
        assert not leases.held
        assert held.task is not None
        assert held.task.cancelled()
        assert queue.released == [("m1", 0)]
        renewing.cancel()

    run(main())


def test_a_job_that_comes_while_others_are_renewed_is_left_alone() -> None:
    """What was not in the batch can be neither renewed nor lost by it."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (old,) = await hold(leases, hash_job("old"))
        queue.lost = {"m1/1"}
        renewal = asyncio.create_task(leases.renew())
        await asyncio.sleep(0)
        (new,) = await hold(leases, hash_job("new"))
        await renewal
        assert list(leases.held.values()) == [new]
        assert old.task is not None
        await settle()
        assert old.task.cancelled()

    run(main())


# --- giving back


def test_jobs_are_given_back_in_batches() -> None:
    """Every message of every job, ten at a time, with the wait that was asked for."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        held = await hold(leases, *(hash_job(f"hash-{i}") for i in range(12)))
        await receive(leases, hash_job("hash-0"))
        await leases.release(held, 120)
        assert not leases.held
        assert sorted(queue.released) == sorted((f"m{i}", 120) for i in range(1, 14))

    run(main())


def test_a_job_is_given_back_once() -> None:
    """What is no longer held is not ours to give back."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        leases.finish(held, remember_job=True)
        await leases.release([held])
        assert queue.released == []

    run(main())


def test_a_failure_to_give_back_is_no_matter() -> None:
    """The lease ends by itself; the other batches are given back all the same."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        held = await hold(leases, *(hash_job(f"hash-{i}") for i in range(15)))
        queue.broken["set_visibility"] = [DOWN]
        await leases.release(held)
        assert len(queue.released) == 5
        assert not leases.held

    run(main())


# --- deleting


def test_deletes_go_in_batches_when_there_are_many() -> None:
    """Few calls under load, and none is forgotten."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        for held in await hold(leases, *(hash_job(f"hash-{i}") for i in range(25))):
            leases.finish(held, remember_job=True)
        await deleted(leases)
        assert sorted(map(len, queue.delete_calls)) == [5, 10, 10]
        assert queue.empty

    run(main())


def test_a_delete_that_fails_is_tried_again() -> None:
    """With growing pauses; only what is still there is asked for again."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        for held in await hold(leases, hash_job("a"), hash_job("b"), hash_job("c")):
            leases.finish(held, remember_job=True)
        queue.broken["delete"] = [DOWN, DOWN]
        queue.undeletable = [{"m2/1"}, {"m2/1"}]
        began = now()
        await deleted(leases)
        assert queue.delete_calls == [["m1/1", "m2/1", "m3/1"], ["m2/1"], ["m2/1"]]
        assert sorted(queue.deleted) == ["m1", "m2", "m3"]
        assert 0 < now() - began < 10

    run(main())


def test_a_message_that_cannot_be_deleted_does_not_stop_the_others() -> None:
    """It is given up after a while, and recognised as finished when it comes again."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (stuck,) = await hold(leases, hash_job("stuck"))
        queue.undeletable = [{"m1/1"}] * 8
        leases.finish(stuck, remember_job=True)
        deleting = asyncio.create_task(leases.delete_for_ever())
        await settle(60)
        (other,) = await hold(leases, hash_job("other"))
        leases.finish(other, remember_job=True)
        await leases.deleted()
        assert queue.deleted == ["m2"]
        deleting.cancel()

    run(main())


def test_waiting_for_deletes_waits_for_all_of_them() -> None:
    """A drained service has deleted what it finished."""

    async def main() -> None:
        queue = FakeQueue()
        leases = leases_of(queue)
        (held,) = await hold(leases, hash_job())
        queue.broken["delete"] = [DOWN] * 3
        leases.finish(held, remember_job=True)
        deleting = asyncio.create_task(leases.delete_for_ever())
        waiting = asyncio.create_task(leases.deleted())
        await settle(0.2)
        assert not waiting.done()
        await until(waiting.done)
        assert queue.deleted == ["m1"]
        deleting.cancel()

    run(main())


# --- threads


def test_the_queue_is_called_in_threads() -> None:
    """A long poll of 20 s must not stop the loop that renews leases meanwhile."""

    async def main() -> None:
        leases = Leases(FakeQueue(), LEASE_S)  # type: ignore[arg-type] # a stand-in
        released = threading.Event()

        def block() -> int:
            assert released.wait(60)
            return threading.get_ident()

        call = asyncio.create_task(leases.call(block))
        await asyncio.sleep(0)
        released.set()  # reached only because the loop goes on
        assert await call != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await leases.call(divmod, 1, 0)

    asyncio.run(main())
