"""What the service counts: every event in its metric, with labels of few values."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import pytest

from tests.unit.fakes import (
    AWAY,
    DELIVERED,
    FAULT,
    REFUSED,
    FakeExecutor,
    FakeQueue,
    FakeServer,
    Service,
    analysis_job,
    hash_job,
    mix_job,
    run,
    settle,
)
from waveflow_ray import __version__
from waveflow_ray.aws.sqs import QueueError
from waveflow_ray.errors import ErrorCode, JobError, internal_error
from waveflow_ray.messages import MixJob
from waveflow_ray.metrics import (
    BUILD_INFO,
    CPU_SECONDS,
    DEAD_LETTERS,
    DEAD_LETTERS_WRITTEN,
    FAILURES,
    IN_HAND,
    JOB_SECONDS,
    JOBS,
    LEASE_RENEWALS,
    LEASES_LOST,
    NODES,
    OLDEST_AGE,
    PEAK_MEMORY,
    QUEUE_MESSAGES,
    READ_BYTES,
    RETRIES,
    SERVER_AWAY,
    SLOTS,
    STAGE_SECONDS,
    TABLE,
    WEBHOOKS,
    Metric,
    Metrics,
)
from waveflow_ray.outcomes import Outcome, Usage
from waveflow_ray.runtime.watch import Watch, node_type
from waveflow_ray.webhooks import Verdict

NOT_AUDIO = JobError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "That is no audio.")
HEAD = {"Resources": {"node:__internal_head__": 1.0, "CPU": 0.0}}


def counted(metrics: Metrics, metric: Metric) -> dict[tuple[str, ...], float]:
    """A counter's values by its labels."""
    return {labels: value for (found, labels), value in metrics.added.items() if found is metric}


def levels(metrics: Metrics, metric: Metric) -> dict[tuple[str, ...], float]:
    """Where a gauge stands, by its labels."""
    return {labels: value for (found, labels), value in metrics.levels.items() if found is metric}


def watched(
    service: Service,
    nodes: list[dict[str, Any]],
    flush: Callable[[], None] = lambda: None,
    asked: list[int] | None = None,
) -> Watch:
    async def alive() -> list[dict[str, Any]]:
        return nodes

    async def ask_for_cpus(count: int) -> None:
        if asked is not None:
            asked.append(count)

    return Watch(service.ingress, service.metrics, alive, ask_for_cpus, flush)


# --- the table


@pytest.mark.parametrize("metric", TABLE, ids=lambda m: m.name)
def test_names_and_units_are_as_prometheus_wants_them(metric: Metric) -> None:
    """Base units in the name, counters end in `_total`, histograms have rising bounds."""
    assert re.fullmatch(r"waveflow_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.unit in ("seconds", "bytes"):
        assert metric.unit in metric.name
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert not {"le", "job", "instance"} & metric.labels.keys(), "Prometheus uses these itself"


def test_there_are_few_time_series() -> None:
    """Labels have few values, each known beforehand; all metrics together stay below 3,000."""
    sizes = {m: prod(map(len, m.labels.values())) * (len(m.bounds) + 3) for m in TABLE}
    assert sum(sizes.values()) < 3000
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    assert all(values for metric in TABLE for values in metric.labels.values())


def test_alerts_on_rare_events_see_the_first_one() -> None:
    """Such counters start at 0: a series that begins with 1 has no rate."""
    rare = {JOBS, RETRIES, DEAD_LETTERS_WRITTEN, LEASES_LOST, LEASE_RENEWALS}
    assert all(metric.starts_at_zero for metric in rare)


def test_every_verdict_has_its_label() -> None:
    assert set(WEBHOOKS.labels["verdict"]) == {verdict.value for verdict in Verdict}


# --- collecting


def test_a_value_falls_into_the_bucket_that_ends_with_it() -> None:
    """Upper bounds belong to their bucket, as Prometheus has it; the last one has no bound."""
    metrics = Metrics()
    first, second = JOB_SECONDS.bounds[:2]
    for value in (0.0, first, first * 1.001, second, JOB_SECONDS.bounds[-1] * 2):
        metrics.observe(JOB_SECONDS, value, "hash")
    seen = metrics.seen[JOB_SECONDS, ("hash",)]
    assert seen.buckets == [2, 2] + [0] * (len(JOB_SECONDS.bounds) - 2) + [1]
    assert seen.total == pytest.approx(first * 2.001 + second + JOB_SECONDS.bounds[-1] * 2)


def test_the_usage_of_an_attempt_is_counted_also_if_it_is_repeated() -> None:
    """What a failed attempt read and computed was paid for, too."""
    metrics = Metrics()
    usage = Usage({"download": 1.0, "work": 2.0}, 100, 0, 60.0, 150.5, "node", 0.75)
    metrics.job_retried("analysis", Outcome("FAILURE", None, internal_error("x"), usage))
    metrics.job_ended("analysis", Outcome("SUCCESS", None, None, usage), 90.0)
    assert counted(metrics, RETRIES) == {("analysis", "internal_error"): 1}
    assert counted(metrics, JOBS) == {("analysis", "SUCCESS"): 1}
    assert counted(metrics, READ_BYTES) == {("analysis",): 200}
    assert counted(metrics, CPU_SECONDS) == {("analysis",): 1.5}
    assert metrics.seen[PEAK_MEMORY, ("analysis",)].total == 2 * 150.5 * 2**20
    assert metrics.seen[STAGE_SECONDS, ("analysis", "work")].total == 4.0
    assert metrics.seen[JOB_SECONDS, ("analysis",)].total == 90.0


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("201 {}", "2xx"),
        ("302 ", "3xx"),
        ("404 no", "4xx"),
        ("503 away", "5xx"),
        ("ClientConnectorError: refused", "none"),
        ("", "none"),
        ("999 what", "none"),
    ],
)
def test_an_answer_has_one_of_five_classes(text: str, status: str) -> None:
    """Whatever a server says, no new time series comes of it."""
    metrics = Metrics()
    metrics.webhook_answered("/completion", "fault", text)
    assert counted(metrics, WEBHOOKS) == {("/completion", status, "fault"): 1}


# --- the ingress


def test_the_ingress_tells_how_every_job_ended() -> None:
    """Success, failure, retry, dead letter, webhooks: each is counted once, where it belongs."""

    async def scenario() -> None:
        plan = {"hash-1": [internal_error("once"), None], "analysis-1": [NOT_AUDIO]}
        server = FakeServer(answers=[FAULT, AWAY])
        async with Service(executor=FakeExecutor(plan=plan), server=server) as service:
            service.queue.put(hash_job())
            await service.until(lambda: service.queue.released)
            assert counted(service.metrics, RETRIES) == {("hash", "internal_error"): 1}
            service.queue.put(hash_job("hash-2"))
            service.queue.put(analysis_job())
            service.queue.put("neither JSON nor anything")
            await service.until_done()
            metrics = service.metrics
            assert counted(metrics, JOBS) == {
                ("hash", "SUCCESS"): 1,
                ("analysis", "FAILURE"): 1,
                ("rejected", "FAILURE"): 1,
            }
            assert counted(metrics, FAILURES) == {
                ("analysis", "unsupported_media_type"): 1,
                ("rejected", "invalid_message"): 1,
            }
            assert counted(metrics, DEAD_LETTERS_WRITTEN) == {("invalid_message",): 1}
            assert sum(counted(metrics, WEBHOOKS).values()) == len(server.sent)
            assert counted(metrics, WEBHOOKS)["/completion", "2xx", "delivered"] == 1
            assert sum(metrics.seen[JOB_SECONDS, ("hash",)].buckets) == 1

    run(scenario())


def test_a_refused_webhook_is_a_dead_letter_of_its_own_code() -> None:
    async def scenario() -> None:
        async with Service(server=FakeServer(answers=[REFUSED])) as service:
            service.queue.put(hash_job())
            await service.until_done()
            assert counted(service.metrics, DEAD_LETTERS_WRITTEN) == {("webhook_refused",): 1}
            answers = counted(service.metrics, WEBHOOKS)
            assert answers == {("/hash-check", "4xx", "refused"): 1}

    run(scenario())


def test_renewals_and_losses_are_counted() -> None:
    """Two leases are renewed until one of them is lost."""

    async def scenario() -> None:
        executor = FakeExecutor()
        executor.hold("hash-1", "mix-1")
        async with Service(executor=executor, visibility_timeout_s=30) as service:
            service.queue.put(hash_job())
            service.queue.put(mix_job())
            await settle(11)
            assert counted(service.metrics, LEASE_RENEWALS) == {("renewed",): 2}
            service.queue.lost.add("m2/1")
            await settle(10)
            assert counted(service.metrics, LEASE_RENEWALS) == {("renewed",): 3, ("lost",): 1}
            assert counted(service.metrics, LEASES_LOST) == {("mix",): 1}

    run(scenario())


def test_every_label_has_a_value_that_the_table_knows() -> None:
    """After a bit of everything, nothing was counted under a label that is not in the table."""

    async def scenario() -> None:
        plan: dict[str, list[Exception | None]] = {
            f"hash-{code}": [JobError(code, "x")] for code in ErrorCode
        }
        server = FakeServer(answers=[DELIVERED, FAULT, REFUSED, AWAY])
        async with Service(executor=FakeExecutor(plan=plan), server=server) as service:
            for code in ErrorCode:
                service.queue.put(hash_job(f"hash-{code}"), receives=9)
            service.queue.put(MixJob(job_id="m", stageId="s", stem_paths=["a"]))
            await service.until_done()
            watch = watched(service, [HEAD])
            await watch_for(watch, 3)
            metrics = service.metrics
            for metric, labels in (*metrics.added, *metrics.levels, *metrics.seen):
                assert labels in set(product(*metric.labels.values())), metric.name

    run(scenario())


# --- gauges


def test_the_autoscaler_is_asked_for_what_the_backlog_needs() -> None:
    """More CPUs when much waits, none when all is done, and nothing twice."""

    async def scenario() -> None:
        executor = FakeExecutor(light=4, heavy=1)
        executor.hold("analysis-0")
        asked: list[int] = []
        async with Service(executor=executor) as service:
            for number in range(300):
                service.queue.put(analysis_job(f"analysis-{number}", stemId=f"s{number}"))
            await settle(5)
            watch = watched(service, [HEAD], asked=asked)
            await watch_for(watch, 5)
            first = 300 * 0.5 / 60  # guessed seconds of an analysis, the target
            assert asked[0] == pytest.approx(first, abs=1)
            assert asked == sorted(set(asked)), "it grows as the jobs get older"
            executor.let_go("analysis-0")
            await service.until_done()
            await watch_for(watch, 15)
            assert asked[-1] == 0

    run(scenario())


def test_no_cpus_are_asked_for_while_the_main_server_is_away() -> None:
    """Nothing could be reported; the backlog waits in the queue."""

    async def scenario() -> None:
        asked: list[int] = []
        async with Service(server=FakeServer(standing=AWAY)) as service:
            for number in range(300):
                service.queue.put(analysis_job(f"analysis-{number}", stemId=f"s{number}"))
            await settle(5)
            await watch_for(watched(service, [HEAD], asked=asked), 5)
            assert asked == [0]

    run(scenario())


async def watch_for(watch: Watch, seconds: float) -> None:
    """Let it watch so long, in virtual time."""
    task = asyncio.create_task(watch.run())
    await settle(seconds)
    task.cancel()


def test_the_gauges_show_what_is_there() -> None:
    """Jobs by kind and stage, the oldest one's age, slots, depths, nodes."""

    async def scenario() -> None:
        executor = FakeExecutor(light=4, heavy=1)
        executor.hold("analysis-1")
        server = FakeServer(standing=AWAY)
        async with Service(executor=executor, server=server) as service:
            service.queue.put(analysis_job())
            service.queue.put(analysis_job("analysis-2", stemId="s2"))
            service.queue.put(hash_job(stemId="s3"))
            await settle(5)
            spot = {"Resources": {"CPU": 2.0}, "Labels": {"ray.io/node-group": "worker-spot"}}
            watch = watched(service, [HEAD, spot, spot])
            await watch_for(watch, 25)
            metrics = service.metrics
            held = {labels for labels, count in levels(metrics, IN_HAND).items() if count}
            assert held == {("analysis", "running"), ("analysis", "waiting"), ("hash", "reporting")}
            assert len(levels(metrics, IN_HAND)) == 28, "what is not there is 0, not absent"
            assert levels(metrics, OLDEST_AGE)[()] == pytest.approx(30, abs=2)
            assert levels(metrics, SERVER_AWAY) == {(): 1}
            assert levels(metrics, SLOTS) == {("light",): 4, ("heavy",): 1}
            depths = {("visible",): 0, ("in_flight",): 3, ("delayed",): 0}
            assert levels(metrics, QUEUE_MESSAGES) == depths
            assert levels(metrics, DEAD_LETTERS) == {(): 0}
            nodes = {("head",): 1, ("spot",): 2, ("ondemand",): 0, ("other",): 0}
            assert levels(metrics, NODES) == nodes
            assert levels(metrics, BUILD_INFO) == {(__version__,): 1}

    run(scenario())


def test_sqs_is_asked_seldom_and_everything_handed_on_every_second() -> None:
    """Every question is billed: 10 of the queue's depth in 100 s, and 2 of the dead letters'."""

    class Counting(FakeQueue):
        asked = 0
        asked_dead = 0

        def facts(self) -> Any:
            self.asked += 1
            return super().facts()

        def dead_letters(self) -> int | None:
            self.asked_dead += 1
            return super().dead_letters()

    async def scenario() -> None:
        queue = Counting()
        flushes: list[None] = []
        async with Service(queue=queue) as service:
            queue.asked = 0
            watch = watched(service, [HEAD], lambda: flushes.append(None))
            await watch_for(watch, 99.5)
            assert (queue.asked, queue.asked_dead, len(flushes)) == (10, 2, 100)
            assert (await watch.facts()).visible == 0
            assert queue.asked == 10, "the depths are remembered for `waveflow status`"

    run(scenario())


def test_what_cannot_be_measured_is_absent_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An old depth would hide that the queue does not answer. The service works on."""

    async def scenario() -> None:
        async with Service() as service:
            watch = watched(service, [HEAD])
            await watch_for(watch, 5)
            assert levels(service.metrics, QUEUE_MESSAGES)
            service.queue.broken["facts"] = [QueueError("no") for _ in range(3)]
            await watch_for(watch, 25)
            assert not levels(service.metrics, QUEUE_MESSAGES)
            assert levels(service.metrics, SLOTS)
            await watch_for(watch, 5)
            assert levels(service.metrics, QUEUE_MESSAGES), "it answers again"

    run(scenario())
    assert [record.message for record in caplog.records].count("not measured") == 1


def test_while_sqs_hangs_the_rest_is_measured() -> None:
    """Else the gauges would vanish, and an alert tell of an ingress that is gone."""

    async def scenario() -> None:
        async with Service() as service:
            flushes: list[None] = []
            watch = watched(service, [HEAD], lambda: flushes.append(None))
            plain_call = service.leases.call

            async def hangs(function: Any, *args: object) -> Any:
                if function == service.queue.facts:
                    await asyncio.sleep(3600)
                return await plain_call(function, *args)

            service.leases.call = hangs  # type: ignore[method-assign] # SQS does not answer
            await watch_for(watch, 30.5)
            assert len(flushes) == 31
            assert levels(service.metrics, NODES)
            assert levels(service.metrics, DEAD_LETTERS)

    run(scenario())


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        (HEAD, "head"),
        ({"Resources": HEAD["Resources"], "Labels": {"ray.io/node-group": "head"}}, "head"),
        ({"Labels": {"ray.io/node-group": "worker-spot"}}, "spot"),
        ({"Labels": {"ray.io/node-group": "worker-ondemand"}}, "ondemand"),
        ({"Labels": {"ray.io/market-type": "on-demand"}}, "ondemand"),
        ({"Labels": {"ray.io/market-type": "spot"}}, "spot"),
        ({"Resources": {"worker-spot": 1.0, "CPU": 2.0}}, "spot"),
        ({"Resources": {"node:10.0.0.7": 1.0, "CPU": 2.0}, "Labels": {}}, "other"),
    ],
)
def test_nodes_are_told_apart(node: dict[str, Any], kind: str) -> None:
    """By the autoscaler's type, Ray's market label, or a resource."""
    assert node_type(node) == kind
