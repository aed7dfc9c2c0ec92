"""Who may report next: one webhook at a time for a subject, in the order the jobs came."""

from __future__ import annotations

import asyncio
from bisect import insort
from dataclasses import dataclass, field
from typing import Self

JobsInHand = dict[int, tuple[str | None, bool]]
"""By a number of each job: its subject, and whether it is a mix that runs. Plain types: one version
of this code passes them to another."""


@dataclass(order=True)
class Ticket:
    """A place in the line of one subject. ``async with ticket`` waits for its turn."""

    order: tuple[int, int]
    line: Line = field(compare=False)
    subject: str | None = field(compare=False)
    reporting: bool = field(default=False, compare=False)

    async def __aenter__(self) -> Self:
        await self.line.turn(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Give up the place; the next in line may go. Harmless if it was given up before."""
        self.line.leave(self)


class Line:
    """All subjects' lines. Lives in one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Ticket]] = {}
        self._moved: dict[str, asyncio.Event] = {}

    def join(self, subject: str | None, order: tuple[int, int]) -> Ticket:
        """Take a place. `order` is (when the message was sent, ms; a running number)."""
        ticket = Ticket(order, self, subject)
        if subject is not None:
            insort(self._lines.setdefault(subject, []), ticket)
        return ticket

    async def turn(self, ticket: Ticket) -> None:
        """Wait until no earlier job of the subject is left and no webhook of it is in flight."""
        if ticket.subject is None:
            return
        while True:
            line = self._lines[ticket.subject]
            if line[0] is ticket and not any(other.reporting for other in line):
                ticket.reporting = True
                return
            await self._moved.setdefault(ticket.subject, asyncio.Event()).wait()

    def leave(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.subject or "", [])
        if not any(other is ticket for other in line):
            return
        assert ticket.subject is not None
        self._lines[ticket.subject] = line = [other for other in line if other is not ticket]
        if not line:
            del self._lines[ticket.subject]
        moved = self._moved.pop(ticket.subject, None)
        if moved is not None:
            moved.set()
