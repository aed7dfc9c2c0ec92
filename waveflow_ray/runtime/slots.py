"""How many jobs may be worked on at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Slots:
    """How many jobs the cluster can work on: light (hash, duplicate, …) and heavy ones.

    Attributes:
        mixes: of the heavy ones.
    """

    light: int
    heavy: int
    mixes: int


class SlotPool:
    """A semaphore whose size follows the cluster."""

    def __init__(self) -> None:
        self.size = 0
        self._semaphore = asyncio.Semaphore(0)
        self._surplus = 0  # slots in use that are not to come back

    def resize(self, size: int) -> None:
        """Jobs that run stay; a smaller size takes effect as they end."""
        self._surplus += self.size - size
        self.size = size
        while self._surplus < 0:
            self._surplus += 1
            self._semaphore.release()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        await self._semaphore.acquire()
        try:
            yield
        finally:
            if self._surplus > 0:
                self._surplus -= 1
            else:
                self._semaphore.release()
