"""How many CPUs a backlog needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waveflow_ray.outcomes import Usage
from waveflow_ray.runtime.demand import Backlog, Costs, cpus_needed, next_request

TARGET_S = 60.0


def learnt(**cpu_s: float) -> Costs:
    """Costs after many jobs of each kind in turn."""
    costs = Costs()
    for _ in range(500):
        for kind, seconds in cpu_s.items():
            costs.learn(kind, Usage(cpu_s=seconds))
    return costs


def test_nothing_to_do_needs_no_cpu() -> None:
    """So that the cluster can shrink to the head."""
    assert cpus_needed(Backlog({}, 0, 0.0), Costs(), TARGET_S) == 0


def test_the_backlog_is_shared_out_over_the_target() -> None:
    """1,200 CPU seconds within 60 s are the work of 20 CPUs, wherever the jobs are."""
    costs = learnt(analysis=0.5)
    in_hand, queued = Backlog({"analysis": 2400}, 0, 0.0), Backlog({}, 2400, 0.0)
    assert cpus_needed(in_hand, costs, TARGET_S) == 20
    assert cpus_needed(queued, costs, TARGET_S) == 20


def test_what_is_queued_is_taken_for_what_came_before() -> None:
    """Nobody knows the kind of a message that is not received yet."""
    costs = learnt(hash=0.01, mix=10.0)
    assert costs.of("hash") == pytest.approx(0.01, abs=1e-6)
    assert costs.mean == pytest.approx(5.0, rel=0.1)


def test_a_late_backlog_needs_more_at_once() -> None:
    """Half the time is left for the same work; a quarter at the least, however late it is."""
    costs = learnt(analysis=1.0)
    assert cpus_needed(Backlog({}, 600, 30.0), costs, TARGET_S) == 20
    assert cpus_needed(Backlog({}, 600, 1e6), costs, TARGET_S) == 40


def test_waiting_with_a_cpu_set_aside_counts() -> None:
    """An analysis that waits for S3 keeps its CPU from other analyses; a hash most of it not."""
    costs = Costs()
    usage = Usage(seconds={"queue": 50.0, "download": 2.0, "work": 1.0, "webhook": 9.0}, cpu_s=0.5)
    for kind in ("analysis", "hash"):
        for _ in range(500):
            costs.learn(kind, usage)
    assert costs.of("analysis") == pytest.approx(3.0 * 0.8)
    assert costs.of("hash") == pytest.approx(3.0 * 0.2)


@given(
    st.dictionaries(st.sampled_from(["hash", "analysis", "mix", "health"]), st.integers(0, 1000)),
    st.integers(0, 100_000),
    st.floats(0, 1e6),
    st.floats(1, 3600),
)
def test_more_to_do_never_needs_less(
    in_hand: dict[str, int], queued: int, age_s: float, target_s: float
) -> None:
    """One message more, or a little older: at least as many CPUs."""
    costs = Costs()
    now = cpus_needed(Backlog(in_hand, queued, age_s), costs, target_s)
    assert cpus_needed(Backlog(in_hand, queued + 1, age_s), costs, target_s) >= now >= 0
    assert cpus_needed(Backlog(in_hand, queued, age_s + 1), costs, target_s) >= now


@given(st.integers(1, 500), st.integers(1, 40), st.sampled_from([(8, 2), (2, 8), (2,)]))
def test_all_nodes_that_are_permitted_come(wanted: int, most: int, steps: tuple[int, ...]) -> None:
    """The autoscaler does nothing for a request beyond its limit; in steps the limit is reached."""
    have = 1
    for turn in range(200):
        asked = next_request(wanted, have, 0, steps[turn % len(steps)])
        if asked <= most * 2 + 1:
            have = max(have, 1 + -(-(asked - 1) // 2) * 2)
    assert have >= min(wanted, most * 2 + 1)
