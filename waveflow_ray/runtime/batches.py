"""Small things to do are sent in groups: a call costs the same for ten as for one. No Ray in here.

A group is whatever waits when a sender is free, never more waited for: one thing that comes alone
goes alone and at once, and under load the groups fill by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Send = Callable[[Sequence[Item]], AsyncIterator[Sequence[tuple[int, Result]]]]
"""Does a group. Yields results as they come, each with the number of its item in the group."""


class LostError(Exception):
    """A group ended before it had a result for this one.

    Attributes:
        alone: there was no other in the group, so the item is all that can be at fault.
        cause: what ended it.
    """

    def __init__(self, cause: Exception, alone: bool) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause
        self.alone = alone


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    alone: bool
    result: asyncio.Future[Result]
    group: asyncio.Task[None] | None = None


class Batches(Generic[Item, Result]):
    """Gathers items into groups and hands out their results. Lives in one event loop.

    Args:
        send: does a group.
        most: items in a group.
        at_a_time: groups under way together; see `resize`.
    """

    def __init__(self, send: Send[Item, Result], most: int, at_a_time: int = 1) -> None:
        self._send = send
        self._most = most
        self._at_a_time = at_a_time
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._groups: dict[asyncio.Task[None], list[_Entry[Item, Result]]] = {}

    def resize(self, at_a_time: int) -> None:
        """Let so many groups be under way together."""
        self._at_a_time = at_a_time
        self._begin()

    async def insist(self, item: Item, tries: int, lost: Callable[[Exception], object]) -> Result:
        """Do one item, and do it again alone if its group was lost or its result is None.

        Args:
            tries: so many groups of its own may be lost with it; only then it is at fault.
            lost: is told of every loss.

        Raises:
            LostError: of the last one.
        """
        alone, losses = False, 0
        while True:
            try:
                result = await self.once(item, alone=alone)
            except LostError as error:
                lost(error.cause)
                losses += error.alone
                if losses == tries:
                    raise
            else:
                if result is not None:
                    return result
            alone = True

    async def once(self, item: Item, *, alone: bool = False) -> Result:
        """Do one item. If cancelled, it is not begun, or its result is dropped; a group that
        nobody waits for any more is cancelled.

        Args:
            alone: in a group of its own.

        Raises:
            LostError: the group ended without a result for it.
        """
        entry = _Entry[Item, Result](item, alone, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        # What comes in the same moment, ten messages of one receive, goes together.
        asyncio.get_running_loop().call_soon(self._begin)
        try:
            return await entry.result
        except asyncio.CancelledError:
            if entry.group is None:
                self._waiting.remove(entry)
            elif all(other.result.done() for other in self._groups.get(entry.group, ())):
                entry.group.cancel()
            raise

    def _begin(self) -> None:
        while self._waiting and len(self._groups) < self._at_a_time:
            entries = [self._waiting.popleft()]
            while (
                self._waiting
                and len(entries) < self._most
                and not (entries[0].alone or self._waiting[0].alone)
            ):
                entries.append(self._waiting.popleft())
            group = asyncio.create_task(self._do(entries))
            self._groups[group] = entries
            for entry in entries:
                entry.group = group

    async def _do(self, entries: list[_Entry[Item, Result]]) -> None:
        cause: Exception = RuntimeError("there was no result")
        try:
            async for results in self._send([entry.item for entry in entries]):
                for number, result in results:
                    if not entries[number].result.done():
                        entries[number].result.set_result(result)
        except Exception as error:
            cause = error
        finally:
            group = asyncio.current_task()
            assert group is not None
            del self._groups[group]
            for entry in entries:
                if not entry.result.done():
                    entry.result.set_exception(LostError(cause, len(entries) == 1))
            self._begin()
