"""Several webhooks in one call, and nobody waits for another's slow answer. No Ray in here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from waveflow_ray.outcomes import Webhook
from waveflow_ray.webhooks import Answer

PATIENCE_S = 0.05


class Outbox:
    """Sends webhooks by `post`, and keeps the answers until they are asked for."""

    def __init__(self, post: Callable[[Webhook], Awaitable[Answer]]) -> None:
        self._post = post
        self._sent: dict[str, asyncio.Future[Answer]] = {}

    async def some(self, webhooks: Sequence[Webhook]) -> list[Answer | None]:
        """Send webhooks, each once. None for those that are not answered within a moment; `one`
        tells of them."""
        sent = [self._send(webhook) for webhook in webhooks]
        await asyncio.wait(sent, timeout=PATIENCE_S)
        return [
            self._taken(webhook) if task.done() else None
            for webhook, task in zip(webhooks, sent, strict=True)
        ]

    async def one(self, webhook: Webhook) -> Answer:
        """Send a webhook once and wait for its answer; if `some` has sent it, only wait."""
        await asyncio.wait([self._send(webhook)])
        return self._taken(webhook)

    def _send(self, webhook: Webhook) -> asyncio.Future[Answer]:
        if webhook.id not in self._sent:
            self._sent[webhook.id] = asyncio.ensure_future(self._post(webhook))
        return self._sent[webhook.id]

    def _taken(self, webhook: Webhook) -> Answer:
        return self._sent.pop(webhook.id).result()
