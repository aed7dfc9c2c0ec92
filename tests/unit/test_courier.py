from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from tests.unit.fakes import (
    AWAY,
    DELIVERED,
    FAULT,
    REFUSED,
    FakeServer,
    now,
    run,
    settings_of,
    settle,
    until,
    webhook_of,
)
from waveflow_ray.outcomes import COMPLETION, HASH_CHECK, MIXING_COMPLETE, Status, Webhook
from waveflow_ray.runtime.courier import Courier, Delivery
from waveflow_ray.webhooks import Answer, Verdict, judge


def courier_to(server: FakeServer, **settings: Any) -> Courier:
    return Courier(server.post, settings_of(**settings), clock=now)


def deliveries(courier: Courier, count: int) -> list[asyncio.Task[Delivery]]:
    """Many webhooks of different subjects, under way at the same time."""
    return [
        asyncio.create_task(courier.deliver(webhook_of(f"msg_{i}", subject=f"stem:{i}")))
        for i in range(count)
    ]


def pauses_of(server: FakeServer) -> list[float]:
    """Seconds from each answer to the next post."""
    return [later - earlier - server.takes_s for earlier, later in pairwise(server.times)]


def assert_jittered(pauses: list[float], full: list[float]) -> None:
    """Every pause is 50 to 100 % of its full length."""
    assert len(pauses) == len(full)
    for pause, most in zip(pauses, full, strict=True):
        assert most * 0.5 - 1e-6 <= pause <= most + 1e-6


def test_a_webhook_that_is_taken_is_sent_once() -> None:
    """The normal case costs one post and no pause."""

    async def main() -> None:
        server = FakeServer()
        delivery = await courier_to(server).deliver(webhook_of())
        assert delivery == Delivery(True, DELIVERED, 1)
        assert len(server.sent) == 1

    run(main())


def test_faults_are_tried_again_with_growing_pauses() -> None:
    """Pauses double from WEBHOOK_PAUSE_S to WEBHOOK_MAX_PAUSE_S; always the same webhook."""

    async def main() -> None:
        server = FakeServer(answers=[FAULT] * 6)
        courier = courier_to(server, webhook_pause_s=1, webhook_max_pause_s=10)
        delivery = await courier.deliver(webhook_of())
        assert delivery == Delivery(True, DELIVERED, 7)
        assert_jittered(pauses_of(server), [1, 2, 4, 8, 10, 10])
        assert {webhook for webhook, _ in server.sent} == {webhook_of()}
        assert courier.retries == 6
        assert courier.breaker.closed.is_set()

    run(main())


def test_a_fault_that_lasts_is_given_up() -> None:
    """After WEBHOOK_GIVE_UP_S of faults the last answer is what the dead-letter queue keeps."""

    async def main() -> None:
        server = FakeServer(standing=FAULT)
        courier = courier_to(server, webhook_give_up_s=600, webhook_max_pause_s=15)
        began = now()
        delivery = await courier.deliver(webhook_of())
        assert (delivery.delivered, delivery.answer) == (False, FAULT)
        assert delivery.attempts == len(server.sent)
        assert 600 <= now() - began <= 620

    run(main())


def test_a_refusal_is_final() -> None:
    """A 4xx stays one, however often it is asked for."""

    async def main() -> None:
        server = FakeServer(standing=REFUSED)
        delivery = await courier_to(server).deliver(webhook_of())
        assert delivery == Delivery(False, REFUSED, 1)

    run(main())


@pytest.mark.parametrize(
    ("path", "status", "attempts"),
    [
        (COMPLETION, "SUCCESS", 3),
        (MIXING_COMPLETE, "SUCCESS", 3),
        (COMPLETION, "FAILURE", 1),
        (MIXING_COMPLETE, "FAILURE", 1),
        (HASH_CHECK, "SUCCESS", 1),
    ],
)
def test_status_error_after_a_success_is_tried_again(
    path: str, status: Status, attempts: int
) -> None:
    """201 with status "error" is retried where the result would be lost, and only there."""

    async def main() -> None:
        bodies = [b'{"status":"error"}', b'{"status":"error"}', b"{}"]

        async def post(webhook: Webhook) -> Answer:
            return Answer(judge(webhook, 201, bodies.pop(0)), "201")

        delivery = await Courier(post, settings_of(), clock=now).deliver(
            webhook_of(path=path, status=status)
        )
        assert (delivery.delivered, delivery.attempts) == (True, attempts)

    run(main())


def test_while_the_server_is_away_nothing_is_given_up() -> None:
    """A server that is away for hours finds every outcome waiting."""

    async def main() -> None:
        server = FakeServer(standing=AWAY)
        courier = courier_to(server, webhook_give_up_s=600, webhook_max_pause_s=15)
        delivery = asyncio.create_task(courier.deliver(webhook_of()))
        await settle(4 * 3600)
        assert not delivery.done()
        assert not courier.breaker.closed.is_set()
        server.standing = DELIVERED
        await settle(20)
        assert delivery.result().delivered
        assert courier.breaker.closed.is_set()

    run(main())


def test_probes_come_with_growing_pauses() -> None:
    """A server that starts is not flooded, and one that was away for long is found soon."""

    async def main() -> None:
        server = FakeServer(answers=[AWAY] * 6)
        courier = courier_to(server, webhook_pause_s=1, webhook_max_pause_s=10)
        await courier.deliver(webhook_of())
        assert_jittered(pauses_of(server), [1, 2, 4, 8, 10, 10])

    run(main())


def test_an_outage_starts_with_a_short_pause_again() -> None:
    """The pauses of the last outage are no reason to be slow at the next."""

    async def main() -> None:
        server = FakeServer(answers=[AWAY] * 5)
        courier = courier_to(server, webhook_pause_s=1, webhook_max_pause_s=10)
        await courier.deliver(webhook_of("msg_1"))
        server.sent.clear()
        server.answers = [AWAY] * 2
        await courier.deliver(webhook_of("msg_2"))
        assert_jittered(pauses_of(server), [1, 2])

    run(main())


def test_one_webhook_probes_while_the_rest_wait() -> None:
    """While the server is away it gets one webhook at a time, however many wait."""

    async def main() -> None:
        server = FakeServer(standing=AWAY)
        courier = courier_to(server, webhook_max_pause_s=15)
        tasks = deliveries(courier, 50)
        await settle(1)  # all were under way when it went; they learn that it is away
        posts, server.most_at_once["all"] = len(server.sent), 0
        assert posts >= 50
        tasks += deliveries(courier, 50)
        await settle(600)
        assert server.most_at_once["all"] == 1
        assert len(server.sent) - posts <= 600 / 7.5 + 5
        assert not any(task.done() for task in tasks)
        server.standing = DELIVERED
        await asyncio.gather(*tasks)

    run(main())


@pytest.mark.parametrize("answer", [DELIVERED, FAULT, REFUSED])
def test_all_resume_when_the_server_is_back(answer: Answer) -> None:
    """Any answer shows that it is there; nobody waits for a pause of its own."""

    async def main() -> None:
        server = FakeServer(standing=AWAY)
        courier = courier_to(server)
        tasks = deliveries(courier, 50)
        await settle(300)
        before, server.most_at_once["all"] = len(server.sent), 0
        server.standing, server.answers = DELIVERED, [answer]
        await until(lambda: len(server.sent) > before)
        await asyncio.sleep(server.takes_s)  # the probe is answered
        await asyncio.sleep(server.takes_s * 2)
        waiting = [task for task in tasks if not task.done()]
        assert len(waiting) == (1 if answer is FAULT else 0)
        assert courier.breaker.closed.is_set()
        assert server.most_at_once["all"] >= 49
        results = await asyncio.gather(*tasks)
        assert sum(result.delivered for result in results) == (49 if answer is REFUSED else 50)

    run(main())


def test_an_answer_that_was_under_way_shows_that_the_server_is_there() -> None:
    """One lost answer among good ones is an outage of a moment."""

    async def main() -> None:
        server = FakeServer(answers=[AWAY, DELIVERED])
        courier = courier_to(server)
        results = await asyncio.gather(*deliveries(courier, 2))
        assert all(result.delivered for result in results)
        assert courier.breaker.closed.is_set()

    run(main())


def test_an_outage_does_not_count_as_faults() -> None:
    """Only the time in which the server answered with errors is held against a webhook.

    A database that goes, a server that is restarted for an hour, and comes up before its
    database: the result must not be given up with the first error after that.
    """

    async def main() -> None:
        server = FakeServer(answers=[FAULT])
        courier = courier_to(server, webhook_give_up_s=600)
        delivery = asyncio.create_task(courier.deliver(webhook_of()))
        await settle(0.2)
        server.standing = AWAY
        await settle(3600)
        server.standing, server.answers = DELIVERED, [FAULT, FAULT]
        assert (await delivery).delivered

    run(main())


@pytest.mark.parametrize("when", ["pausing", "posting"])
def test_a_probe_that_is_cancelled_leaves_its_place(when: str) -> None:
    """A job that is stopped while its webhook probes does not leave the others waiting."""

    async def main() -> None:
        server = FakeServer(standing=AWAY)
        courier = courier_to(server, webhook_pause_s=10, webhook_max_pause_s=10)
        prober = asyncio.create_task(courier.deliver(webhook_of("probe", subject="stem:p")))
        await settle(1)
        other = asyncio.create_task(courier.deliver(webhook_of("other", subject="stem:o")))
        await settle(1)
        if when == "posting":
            posts = len(server.sent)
            await until(lambda: len(server.sent) > posts)
            assert server.sent[-1][0].id == "probe"
        prober.cancel()
        server.standing = DELIVERED
        assert (await other).delivered
        assert prober.cancelled()

    run(main())


def test_a_waiter_that_is_cancelled_is_not_missed() -> None:
    """Those who wait behind it are woken all the same."""

    async def main() -> None:
        server = FakeServer(standing=AWAY)
        courier = courier_to(server)
        tasks = deliveries(courier, 5)
        await settle(60)
        for task in tasks[1:4]:
            task.cancel()
        server.standing = DELIVERED
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, Delivery) for result in results) == 2

    run(main())


def test_probes_take_turns() -> None:
    """Who waits longest probes next, so that none keeps the others from being tried."""

    async def main() -> None:
        server = FakeServer(standing=AWAY)
        courier = courier_to(server)
        tasks = deliveries(courier, 5)
        await settle(1)
        before = len(server.sent)
        await until(lambda: len(server.sent) >= before + 10)
        probes = [webhook.id for webhook, _ in server.sent[before : before + 10]]
        assert sorted(probes[:5]) == sorted(probes[5:]) == [f"msg_{i}" for i in range(5)]
        server.standing = DELIVERED
        await asyncio.gather(*tasks)

    run(main())


def test_a_webhook_that_alone_finds_nobody_is_at_fault_itself() -> None:
    """The others go on, and it is given up like one that is answered with errors."""

    async def main() -> None:
        server = FakeServer(never={"stem:0"})
        courier = courier_to(server, webhook_give_up_s=600)
        began = now()
        poison, *others = deliveries(courier, 20)
        results = await asyncio.gather(*others)
        assert all(result.delivered for result in results)
        assert now() - began < 10
        for number in range(100):  # traffic goes on, and never waits
            began = now()
            await courier.deliver(webhook_of(f"later_{number}", subject=f"stem:later{number}"))
            assert now() - began <= 2 * server.takes_s
            await asyncio.sleep(7)
        delivery = await poison
        assert (delivery.delivered, delivery.answer) == (False, AWAY)
        assert courier.breaker.closed.is_set()

    run(main())


def test_a_webhook_that_failed_alone_waits_when_the_server_goes() -> None:
    """Its own trouble does not count any more once nobody is answered."""

    async def main() -> None:
        server = FakeServer(never={"stem:0"})
        courier = courier_to(server, webhook_give_up_s=600)
        poison, other = deliveries(courier, 2)
        await other
        await settle(60)
        await courier.deliver(webhook_of("another", subject="stem:another"))
        server.standing = AWAY
        await settle(4 * 3600)
        assert not poison.done()
        server.never, server.standing = set(), DELIVERED
        assert (await poison).delivered

    run(main())


@pytest.mark.parametrize("verdict", [Verdict.AWAY, Verdict.FAULT])
def test_the_server_says_when_to_come_again(verdict: Verdict) -> None:
    """Retry-After is waited for, if it is longer than the pause would be."""

    async def main() -> None:
        server = FakeServer(answers=[Answer(verdict, "429 later", retry_after_s=40.0)])
        await courier_to(server).deliver(webhook_of())
        assert 20 <= pauses_of(server)[0] <= 41

    run(main())


def test_a_refusal_after_an_outage_is_final() -> None:
    """Waiting for the server does not make a refusal anything else."""

    async def main() -> None:
        refused = Answer(Verdict.REFUSED, "413 too large")
        delivery = await courier_to(FakeServer(answers=[AWAY, refused])).deliver(webhook_of())
        assert (delivery.delivered, delivery.answer, delivery.attempts) == (False, refused, 2)

    run(main())
