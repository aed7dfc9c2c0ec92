"""Small things done in groups: who goes with whom, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.unit.fakes import run, settle
from waveflow_ray.runtime.batches import Batches, LostError


class DeadError(Exception):
    """What ends a group."""


@dataclass
class Worker:
    """Does groups of words: a word is its own result, in capitals.

    Attributes:
        takes_s: word -> seconds until its result comes; 1 otherwise.
        deadly: words that end their group, after their time.
        refuses: words that have no result in company.
        groups: what was sent.
        cancelled: groups that were stopped.
    """

    takes_s: dict[str, float] = field(default_factory=dict)
    deadly: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    groups: list[list[str]] = field(default_factory=list)
    cancelled: list[list[str]] = field(default_factory=list)

    async def send(self, group: Sequence[str]) -> AsyncIterator[list[tuple[int, str | None]]]:
        self.groups.append(list(group))
        left = dict(enumerate(group))
        passed = 0.0
        try:
            while left:
                number = min(left, key=lambda n: self.takes_s.get(left[n], 1.0))
                word = left.pop(number)
                await asyncio.sleep(self.takes_s.get(word, 1.0) - passed)
                passed = self.takes_s.get(word, 1.0)
                if word in self.deadly:
                    raise DeadError(word)
                refused = word in self.refuses and len(group) > 1
                yield [(number, None if refused else word.upper())]
        except asyncio.CancelledError:
            self.cancelled.append(list(group))
            raise


def batches(worker: Worker, most: int = 3, at_a_time: int = 1) -> Batches[str, str | None]:
    return Batches(worker.send, most, at_a_time)


def insist(group: Batches[str, str | None], word: str, losses: list[str]) -> asyncio.Task[object]:
    lost = lambda cause: losses.append(f"{word} by {cause}")  # noqa: E731 - as short as its name
    return asyncio.create_task(group.insist(word, 2, lost))


def begin(group: Batches[str, str | None], words: Sequence[str]) -> list[asyncio.Task[str | None]]:
    return [asyncio.create_task(group.once(word)) for word in words]


def test_what_comes_alone_goes_alone_and_at_once() -> None:
    """Nothing is waited for to fill a group; what comes meanwhile makes the next, in order."""

    async def main() -> None:
        worker = Worker()
        group = batches(worker)
        first = begin(group, "a")
        await settle(0.1)
        assert worker.groups == [["a"]]
        others = begin(group, "bcdefg")
        assert await asyncio.gather(*first, *others) == list("ABCDEFG")
        assert worker.groups == [["a"], ["b", "c", "d"], ["e", "f", "g"]]

    run(main())


def test_what_comes_in_the_same_moment_goes_together() -> None:
    """The messages of one receive are one group, though there is room for many."""

    async def main() -> None:
        worker = Worker()
        await asyncio.gather(*begin(batches(worker, at_a_time=5), "abc"))
        assert worker.groups == [["a", "b", "c"]]

    run(main())


def test_more_groups_go_together_when_there_is_room() -> None:
    """A larger cluster is used at once, for what waits already too."""

    async def main() -> None:
        worker = Worker()
        group = batches(worker, most=2)
        words = begin(group, "abcdefg")
        await settle(0.5)
        assert worker.groups == [["a", "b"]]
        group.resize(3)
        await settle(0.1)
        assert worker.groups == [["a", "b"], ["c", "d"], ["e", "f"]]
        await asyncio.gather(*words)

    run(main())


def test_nobody_waits_for_a_long_one_in_its_group() -> None:
    """Results are handed out as they come."""

    async def main() -> None:
        worker = Worker(takes_s={"long": 1000.0})
        group = batches(worker)
        long, *others = begin(group, ["long", "b", "c"])
        assert await asyncio.gather(*others) == ["B", "C"]
        assert worker.groups == [["long", "b", "c"]]
        assert not long.done()
        assert await long == "LONG"

    run(main())


def test_who_dies_with_others_is_done_again_alone() -> None:
    """Of a lost group only what had no result is done again; the one at fault is found so."""

    async def main() -> None:
        worker = Worker(takes_s={"quick": 0.5}, deadly={"poison"})
        group = batches(worker, most=5)
        losses: list[str] = []
        words = ("quick", "poison", "b", "c")
        tasks = {word: insist(group, word, losses) for word in words}
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        outcome = dict(zip(words, results, strict=True))
        poison = outcome.pop("poison")
        assert outcome == {word: word.upper() for word in outcome}
        assert isinstance(poison, LostError)
        assert poison.alone
        assert isinstance(poison.cause, DeadError)
        assert worker.groups[0] == ["quick", "poison", "b", "c"]
        assert sorted(worker.groups[1:]) == [["b"], ["c"], ["poison"], ["poison"]]
        assert losses.count("poison by poison") == 3

    run(main())


def test_who_dies_alone_at_first_is_done_once_more() -> None:
    """A group of one is alone too: two lost workers in all are enough to know."""

    async def main() -> None:
        worker = Worker(deadly={"poison"})
        losses: list[str] = []
        with pytest.raises(LostError):
            await insist(batches(worker), "poison", losses)
        assert worker.groups == [["poison"], ["poison"]]

    run(main())


def test_what_has_no_result_in_company_is_done_alone() -> None:
    """A limit that all in a group share says nothing about one of them."""

    async def main() -> None:
        worker = Worker(refuses={"greedy"})
        group = batches(worker)
        losses: list[str] = []
        tasks = [insist(group, word, losses) for word in ("greedy", "b")]
        assert await asyncio.gather(*tasks) == ["GREEDY", "B"]
        assert worker.groups == [["greedy", "b"], ["greedy"]]
        assert losses == []

    run(main())


def test_what_is_cancelled_while_it_waits_is_never_begun() -> None:
    """A job whose lease is lost belongs to somebody else."""

    async def main() -> None:
        worker = Worker()
        group = batches(worker)
        (first,) = begin(group, "a")
        await settle(0.5)
        second, third = begin(group, "bc")
        await settle(0.1)
        second.cancel()
        assert await first == "A"
        assert await third == "C"
        assert worker.groups == [["a"], ["c"]]

    run(main())


def test_what_is_cancelled_in_a_group_leaves_the_others_alone() -> None:
    """Its result is dropped; the group is stopped only when nobody waits for it any more."""

    async def main() -> None:
        worker = Worker(takes_s={"b": 5.0, "c": 9.0})
        group = batches(worker)
        b, c, d = begin(group, "bcd")
        await settle(0.5)
        assert worker.groups == [["b", "c", "d"]]
        b.cancel()
        assert await d == "D"
        assert worker.cancelled == []
        c.cancel()
        await settle(0.1)
        assert worker.cancelled == [["b", "c", "d"]]
        (e,) = begin(group, "e")
        await settle(0.1)
        e.cancel()
        await settle(0.1)
        assert worker.cancelled == [["b", "c", "d"], ["e"]]
        assert await group.once("f") == "F"

    run(main())
