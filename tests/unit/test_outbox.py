"""Several webhooks in one call: what is told at once, and what later."""

from __future__ import annotations

import asyncio

from tests.unit.fakes import AWAY, DELIVERED, FAULT, now, run, webhook_of
from waveflow_ray.outcomes import Webhook
from waveflow_ray.runtime.outbox import PATIENCE_S, Outbox
from waveflow_ray.webhooks import Answer


class Posts:
    """Answers each webhook after a time of its own."""

    def __init__(self, **takes_s: float) -> None:
        self.takes_s = takes_s
        self.sent: list[str] = []
        self.answer = DELIVERED

    async def post(self, webhook: Webhook) -> Answer:
        self.sent.append(webhook.id)
        await asyncio.sleep(self.takes_s.get(webhook.id, 0.01))
        return self.answer


def test_quick_answers_come_together() -> None:
    """All are sent at the same time, and nobody is waited for longer than it takes."""

    async def main() -> None:
        posts = Posts()
        began = now()
        answers = await Outbox(posts.post).some([webhook_of("a"), webhook_of("b")])
        assert answers == [DELIVERED, DELIVERED]
        assert now() - began < PATIENCE_S
        assert posts.sent == ["a", "b"]

    run(main())


def test_nobody_waits_for_a_slow_answer_to_another() -> None:
    """The quick one is told of after a moment; the slow one when it comes, and is sent once."""

    async def main() -> None:
        posts = Posts(slow=20.0)
        outbox = Outbox(posts.post)
        began = now()
        answers = await outbox.some([webhook_of("slow"), webhook_of("quick")])
        assert answers == [None, DELIVERED]
        assert now() - began < 2 * PATIENCE_S
        assert await outbox.one(webhook_of("slow")) == DELIVERED
        assert posts.sent == ["slow", "quick"]

    run(main())


def test_an_answer_that_came_meanwhile_is_told() -> None:
    """A fault that nobody heard of yet is not a reason to send the webhook again at once."""

    async def main() -> None:
        posts = Posts(slow=1.0)
        posts.answer = FAULT
        outbox = Outbox(posts.post)
        assert await outbox.some([webhook_of("slow")]) == [None]
        await asyncio.sleep(10.0)
        assert await outbox.one(webhook_of("slow")) == FAULT
        assert posts.sent == ["slow"]
        posts.answer = AWAY
        assert await outbox.one(webhook_of("slow")) == AWAY
        assert posts.sent == ["slow", "slow"]

    run(main())
