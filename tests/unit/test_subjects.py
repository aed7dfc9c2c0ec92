from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakes import run, settle
from waveflow_ray.runtime.subjects import Line, Ticket


class Report:
    """Somebody who holds a ticket, and reports when its turn comes."""

    def __init__(self, journal: list[str], name: str, ticket: Ticket, takes_s: float = 1) -> None:
        self.ticket = ticket
        self._journal = journal
        self._name = name
        self._takes_s = takes_s

    def begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._report())

    async def _report(self) -> None:
        try:
            async with self.ticket:
                self._journal.append(f"{self._name}>")
                await asyncio.sleep(self._takes_s)
                self._journal.append(f"<{self._name}")
        finally:
            self.ticket.leave()


def test_turns_come_in_the_order_of_the_messages() -> None:
    """Whoever is ready first waits for those whose messages came earlier."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        reports = {
            name: Report(journal, name, line.join("stem:1", (sent, number)))
            for number, (name, sent) in enumerate({"a": 10, "b": 20, "c": 30}.items())
        }
        for name in ("c", "b"):
            reports[name].begin()
        await settle(5)
        assert journal == []
        reports["a"].begin()
        await settle(10)
        assert journal == ["a>", "<a", "b>", "<b", "c>", "<c"]

    run(main())


def test_messages_of_one_moment_go_as_they_were_received() -> None:
    """SQS tells the time in milliseconds; the running number decides between equals."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        reports = [Report(journal, str(n), line.join("stem:1", (10, n))) for n in (2, 1, 3)]
        for report in reports:
            report.begin()
        await settle(10)
        assert journal == ["1>", "<1", "2>", "<2", "3>", "<3"]

    run(main())


def test_subjects_do_not_wait_for_each_other() -> None:
    """Only webhooks of one stem, or of one stage, are kept apart."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        for number, name in enumerate("abc"):
            Report(journal, name, line.join(f"stem:{name}", (1, number))).begin()
        await settle(0.5)
        assert journal == ["a>", "b>", "c>"]

    run(main())


def test_a_job_about_nobody_never_waits() -> None:
    """Jobs without a subject are not in line at all."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        for number, name in enumerate("ab"):
            Report(journal, name, line.join(None, (1, number))).begin()
        await settle(0.5)
        assert journal == ["a>", "b>"]

    run(main())


def test_an_earlier_message_that_comes_late_goes_next_but_interrupts_nobody() -> None:
    """SQS mixes the order up: who reports is not joined, who waits is overtaken."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        Report(journal, "b", line.join("stem:1", (20, 1)), takes_s=5).begin()
        Report(journal, "c", line.join("stem:1", (30, 2))).begin()
        await settle(1)
        Report(journal, "a", line.join("stem:1", (10, 3))).begin()
        await settle(20)
        assert journal == ["b>", "<b", "a>", "<a", "c>", "<c"]

    run(main())


def test_whoever_leaves_without_reporting_frees_the_way() -> None:
    """A job that goes back to the queue does not hold up the others of its subject."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        first = line.join("stem:1", (10, 1))
        Report(journal, "b", line.join("stem:1", (20, 2))).begin()
        await settle(5)
        assert journal == []
        first.leave()
        await settle(0.5)
        assert journal == ["b>"]

    run(main())


def test_leaving_twice_is_harmless() -> None:
    """A ticket is given up after reporting, and again when its job ends."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        for subject in ("stem:1", None):
            ticket = line.join(subject, (10, 1))
            async with ticket:
                pass
            ticket.leave()
            ticket.leave()
        Report(journal, "b", line.join("stem:1", (20, 2))).begin()
        await settle(0.5)
        assert journal == ["b>"]

    run(main())


@pytest.mark.parametrize("who", [0, 1, 2])
def test_whoever_is_cancelled_leaves_the_line(who: int) -> None:
    """The one that reports, the next, or the last: the others go on in order."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        tasks = [Report(journal, str(n), line.join("stem:1", (n, n))).begin() for n in range(3)]
        await settle(0.5)
        tasks[who].cancel()
        await settle(10)
        ended = [entry for entry in journal if entry.startswith("<")]
        assert ended == [f"<{n}" for n in range(3) if n != who]

    run(main())


def test_an_error_while_reporting_frees_the_way() -> None:
    """Whatever goes wrong in a turn, it ends."""

    async def main() -> None:
        line, journal = Line(), list[str]()
        ticket = line.join("stem:1", (1, 1))
        Report(journal, "b", line.join("stem:1", (2, 2))).begin()
        with pytest.raises(RuntimeError):
            async with ticket:
                raise RuntimeError
        await settle(0.5)
        assert journal == ["b>"]

    run(main())


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),  # when the message was sent
            st.integers(0, 9),  # when its job is ready to report
            st.booleans(),  # whether it reports, or leaves
            st.integers(-1, 12),  # when it is cancelled, if it is
        ),
        max_size=8,
    )
)
def test_never_two_at_once_and_nobody_waits_for_ever(
    jobs: list[tuple[int, int, bool, int]],
) -> None:
    """Whatever the timing: one at a time, and everybody who is not cancelled has a turn."""

    async def main() -> None:
        line, journal = Line(), list[str]()

        async def job(number: int, sent: int, ready: int, reports: bool) -> None:
            ticket = line.join("stem:1", (sent, number))
            try:
                await asyncio.sleep(ready)
                if reports:
                    await Report(journal, str(number), ticket, takes_s=1.5).begin()
            finally:
                ticket.leave()

        async def cancelled_at(task: asyncio.Task[None], when: int) -> None:
            if when >= 0:
                await asyncio.sleep(when + 0.25)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        tasks = [
            cancelled_at(asyncio.create_task(job(n, sent, ready, reports)), when)
            for n, (sent, ready, reports, when) in enumerate(jobs)
        ]
        await asyncio.gather(*tasks)
        began = [entry[:-1] for entry in journal if entry.endswith(">")]
        ended = [entry[1:] for entry in journal if entry.startswith("<")]
        must = {str(n) for n, (_, _, reports, when) in enumerate(jobs) if reports and when < 0}
        assert must <= set(ended)
        assert len(began) == len(set(began))
        for entry, following in pairwise(journal):
            if entry.endswith(">") and following.endswith(">"):
                assert entry[:-1] not in ended  # it was cancelled within its turn

    run(main())
