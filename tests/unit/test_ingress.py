from __future__ import annotations

import json
import logging
from itertools import pairwise
from typing import Any

import pytest

from tests.unit.fakes import (
    AWAY,
    DELIVERED,
    FAULT,
    REFUSED,
    FakeExecutor,
    FakeQueue,
    Service,
    analysis_job,
    hash_job,
    mix_job,
    now,
    run,
    settle,
    stem_job,
)
from waveflow_ray.aws.sqs import QueueError
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.messages import (
    AnalysisJob,
    CleanupJob,
    DuplicateJob,
    HealthJob,
    Job,
    MixJob,
)

TRANSIENT = JobError(ErrorCode.STORAGE_UNAVAILABLE, "The storage is away.", "EndpointError")
PERMANENT = JobError(ErrorCode.UNDECODABLE_AUDIO, "The file is not audio.", "libsndfile 7")
MISSING = JobError(ErrorCode.OBJECT_NOT_FOUND, "The file is not there.", "songs/a.wav")
DOWN = QueueError("memory://jobs: EndpointConnectionError: away")


def kind_of(job: Job) -> str:
    return job.kind


# --- jobs that go well


@pytest.mark.parametrize(
    ("job", "path"),
    [
        (hash_job(), "/hash-check"),
        (analysis_job(), "/completion"),
        (DuplicateJob(job_id="d", stemId="stem-1", filepath="f"), "/completion"),
        (mix_job(), "/mixing-complete"),
    ],
    ids=["hash", "analysis", "duplicate", "mix"],
)
def test_a_job_is_done_reported_and_deleted_last(job: Job, path: str) -> None:
    """The message is there until its webhook was delivered; then it is gone."""

    async def main() -> None:
        async with Service() as service:
            service.server.takes_s = 20
            service.queue.put(job)
            await service.until(lambda: service.server.sent)
            await settle(19)
            assert service.queue.deleted == []
            await service.until_done()
            assert service.queue.deleted == ["m1"]
            ((webhook, _),) = service.server.sent
            assert (webhook.path, webhook.status) == (path, "SUCCESS")
            assert service.queue.buried == []
            assert service.ingress.status()["done"] == {f"{job.kind}:SUCCESS": 1}

    run(main())


@pytest.mark.parametrize(
    "job", [HealthJob(job_id="h"), mix_job(stageId=None)], ids=lambda j: j.kind
)
def test_a_job_about_nobody_is_done_and_deleted_in_silence(job: Job) -> None:
    """Maintenance, and a mix without a stage, have nobody to report to."""

    async def main() -> None:
        async with Service() as service:
            service.queue.put(job)
            await service.until(lambda: service.queue.deleted)
            assert service.executor.ids == [job.job_id]
            assert service.server.sent == []
            assert service.queue.buried == []

    run(main())


def test_a_cleanup_job_sweeps_every_node() -> None:
    """It is no task on some worker: the executor sees to all nodes."""

    async def main() -> None:
        async with Service() as service:
            service.queue.put(CleanupJob(job_id="c"))
            await service.until_done()
            assert (service.executor.cleanings, service.executor.ids) == (1, [])

    run(main())


def test_scratch_folders_are_swept_regularly() -> None:
    """Also when nobody asks for it; and the messages are left alone meanwhile."""

    async def main() -> None:
        async with Service(cleanup_interval_s=600) as service:
            await settle(1801)
            assert service.executor.cleanings == 3

    run(main())


def test_leases_are_renewed_while_a_job_runs() -> None:
    """A job longer than its lease runs once, however long it takes."""

    async def main() -> None:
        async with Service(visibility_timeout_s=90) as service:
            service.executor.hold("hash-1")
            service.queue.put(hash_job())
            await settle(3600)
            assert len(service.queue.renewed) == 3600 // 30
            service.executor.let_go("hash-1")
            await service.until_done()
            assert service.executor.ids == ["hash-1"]

    run(main())


def test_a_job_whose_lease_is_lost_is_stopped_and_not_reported() -> None:
    """Somebody else may have it: the work ends, nothing is said, nothing is deleted."""

    async def main() -> None:
        async with Service() as service:
            service.executor.hold("hash-1")
            service.queue.put(hash_job())
            await service.until(lambda: service.executor.ids)
            service.queue.lost = {"m1/1"}
            await settle(31)
            assert service.executor.stopped == ["hash-1"]
            assert service.server.sent == []
            assert (service.queue.deleted, service.queue.released) == ([], [])
            assert service.ingress.status()["leases_lost"] == {"hash": 1}
            assert service.ingress.status()["in_flight"] == {}

    run(main())


# --- repetitions


def test_a_job_sent_twice_is_done_once_and_reported_once() -> None:
    """The twin of a job in flight waits for it; the twin of a finished job is deleted."""

    async def main() -> None:
        async with Service() as service:
            service.executor.hold("hash-1")
            service.queue.put(hash_job())
            await service.until(lambda: service.executor.ids)
            service.queue.put(hash_job())
            await settle(5)
            service.executor.let_go("hash-1")
            await service.until_done()
            service.queue.put(hash_job())
            await service.until_done()
            assert sorted(service.queue.deleted) == ["m1", "m2", "m3"]
            assert service.executor.ids == ["hash-1"]
            assert len(service.server.sent) == 1

    run(main())


def test_a_message_that_comes_again_while_it_reports_makes_no_second_webhook() -> None:
    """Never two webhooks in flight for one event, also when SQS delivers it again."""

    async def main() -> None:
        async with Service() as service:
            service.server.takes_s = 50
            service.queue.put(hash_job())
            await service.until(lambda: service.server.sent)
            service.queue.expire("m1/1")
            await service.until_done()
            assert len(service.server.sent) == 1
            assert service.server.most_at_once["stem:stem-1"] == 1

    run(main())


def test_a_job_replayed_from_the_dead_letter_queue_is_done_and_reported() -> None:
    """What was given up once gets its chance when an operator sends it again."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["hash-1"] = [TRANSIENT]
            service.queue.put(hash_job(), receives=3)
            await service.until_done()
            service.queue.put(hash_job())
            await service.until_done()
            assert [webhook.status for webhook, _ in service.server.sent] == ["FAILURE", "SUCCESS"]
            assert len({webhook.id for webhook, _ in service.server.sent}) == 2

    run(main())


# --- jobs that fail


@pytest.mark.parametrize(("receives", "delay_s"), [(1, 60), (2, 120), (3, 240), (4, 300), (9, 300)])
def test_a_transient_fault_waits_longer_every_time(receives: int, delay_s: int) -> None:
    """min(60·2ⁿ, 300) s, n from how often SQS delivered it; nobody is told meanwhile."""

    async def main() -> None:
        async with Service(max_retries=50) as service:
            service.executor.plan["hash-1"] = [TRANSIENT]
            service.queue.put(hash_job(), receives=receives - 1)
            await service.until(lambda: service.queue.released)
            assert service.queue.released == [("m1", delay_s)]
            await settle(5)
            assert service.server.sent == []
            assert (service.queue.deleted, service.queue.buried) == ([], [])
            assert service.ingress.status()["in_flight"] == {}

    run(main())


def test_the_base_of_the_wait_is_a_setting() -> None:
    """RETRY_DELAY keeps its meaning."""

    async def main() -> None:
        async with Service(retry_delay=5) as service:
            service.executor.plan["hash-1"] = [TRANSIENT]
            service.queue.put(hash_job(), receives=1)
            await service.until(lambda: service.queue.released)
            assert service.queue.released == [("m1", 10)]

    run(main())


def test_twins_wait_together() -> None:
    """A job sent twice that is tried again comes back as both of its messages."""

    async def main() -> None:
        async with Service() as service:
            service.executor.hold("hash-1")
            service.executor.plan["hash-1"] = [TRANSIENT]
            service.queue.put(hash_job())
            service.queue.put(hash_job(), receives=1)
            await service.until(lambda: len(service.queue.leased) == 2)
            await settle(1)
            service.executor.let_go("hash-1")
            await service.until(lambda: service.queue.released)
            assert sorted(service.queue.released) == [("m1", 120), ("m2", 120)]

    run(main())


@pytest.mark.parametrize(
    ("max_retries", "max_receives", "receives"),
    [(3, None, 4), (3, 10, 4), (0, None, 1), (3, 3, 3), (3, 1, 1), (10, 5, 5), (3, None, 7)],
)
def test_the_last_try_is_reported_and_kept(
    max_retries: int, max_receives: int | None, receives: int
) -> None:
    """After MAX_RETRIES, or at the last receive that the redrive policy permits.

    SQS would move the message away in silence after that.
    """

    async def main() -> None:
        queue = FakeQueue(max_receives=max_receives)
        async with Service(queue, max_retries=max_retries) as service:
            service.executor.plan["hash-1"] = [TRANSIENT]
            queue.put(hash_job(), receives=receives - 1)
            await service.until_done()
            assert queue.released == []
            assert queue.deleted == ["m1"]
            assert queue.buried == [("m1", "storage_unavailable", str(TRANSIENT))]
            (payload,) = service.server.payloads
            assert payload["status"] == "FAILURE"
            assert payload["result"]["error_code"] == "storage_unavailable"
            assert payload["result"]["retryable"] is False
            done = service.ingress.status()["done"]
            assert done == {"hash:FAILURE": 1, "dead_letters": 1}

    run(main())


@pytest.mark.parametrize(
    ("max_retries", "max_receives", "receives"), [(3, None, 3), (3, 10, 3), (3, 4, 3), (10, 5, 4)]
)
def test_before_the_last_try_it_is_tried_again(
    max_retries: int, max_receives: int | None, receives: int
) -> None:
    """Three retries are three, after the first try."""

    async def main() -> None:
        queue = FakeQueue(max_receives=max_receives)
        async with Service(queue, max_retries=max_retries) as service:
            service.executor.plan["hash-1"] = [TRANSIENT]
            queue.put(hash_job(), receives=receives - 1)
            await service.until(lambda: queue.released)
            assert (service.server.sent, queue.buried) == ([], [])

    run(main())


@pytest.mark.parametrize(
    "job", [hash_job("j"), analysis_job("j"), mix_job("j")], ids=lambda j: j.kind
)
def test_a_permanent_fault_is_reported_at_once_and_deleted(job: Job) -> None:
    """No retry helps, a person is waiting, and there is nothing to replay."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["j"] = [PERMANENT]
            service.queue.put(job)
            await service.until_done()
            assert service.executor.ids == ["j"]
            (payload,) = service.server.payloads
            assert payload["status"] == "FAILURE"
            assert payload["result"]["error_code"] == "undecodable_audio"
            assert service.queue.deleted == ["m1"]
            assert service.queue.buried == []
            assert service.ingress.status()["done"] == {f"{job.kind}:FAILURE": 1}

    run(main())


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        ({"stemId": "s"}, "invalid_message", "/completion"),
        ({"task": "app.tasks.dance", "stemId": "s"}, "unknown_task", "/completion"),
        (
            {"task": "app.tasks.mix_stems_and_upload", "stageId": "g"},
            "no_stems",
            "/mixing-complete",
        ),
    ],
)
def test_a_rejected_message_that_names_somebody_is_reported_and_kept(
    body: dict[str, Any], code: str, path: str
) -> None:
    """Who waits for it is told, and an engineer can look at what was sent."""

    async def main() -> None:
        async with Service() as service:
            service.queue.put(json.dumps(body))
            await service.until_done()
            ((webhook, _),) = service.server.sent
            assert (webhook.path, webhook.status) == (path, "FAILURE")
            assert service.server.payloads[0]["result"]["error_code"] == code
            assert [(m, c) for m, c, _ in service.queue.buried] == [("m1", code)]
            assert service.queue.deleted == ["m1"]
            assert service.executor.ids == []

    run(main())


@pytest.mark.parametrize("body", ["hello", "[]", "{}", '{"task": "app.tasks.dance"}'])
def test_a_rejected_message_about_nobody_is_kept_in_silence(body: str) -> None:
    """A webhook with a null id would hit an arbitrary record."""

    async def main() -> None:
        async with Service() as service:
            service.queue.put(body)
            await service.until_done()
            assert service.server.sent == []
            assert [m for m, _, _ in service.queue.buried] == ["m1"]
            assert service.queue.deleted == ["m1"]

    run(main())


@pytest.mark.parametrize(
    "body",
    [
        '{"stemId": "s", "filepath": "f", "userId": ' + "[" * 300 + "]" * 300 + "}",
        '{"stemId": "s", "filepath": "f", "userId": "\\ud800"}',
        '{"headers": {}, "body": "' + "[" * 100_000 + '"}',
    ],
    ids=["deep", "half a character", "very deep"],
)
def test_no_message_stops_the_service(body: str) -> None:
    """The next message is done as ever, and the odd one does not come back for ever."""

    async def main() -> None:
        async with Service() as service:
            service.queue.put(body)
            service.queue.put(stem_job(2))
            await service.until_done()
            assert service.executor.ids[-1] == "hash-2"
            assert sorted(service.queue.deleted) == ["m1", "m2"]

    run(main())


def test_a_missing_object_is_looked_for_again_then_reported() -> None:
    """It may be an upload that is just ending: after 1, 2 and 4 s, and then no more."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["analysis-1"] = [MISSING] * 4
            service.queue.put(analysis_job())
            await service.until_done()
            times = [when for _, when in service.executor.begun]
            assert [b - a for a, b in pairwise(times)] == pytest.approx([1, 2, 4])
            (payload,) = service.server.payloads
            assert payload["result"]["error_code"] == "object_not_found"
            assert service.queue.deleted == ["m1"]
            assert (service.queue.buried, service.queue.released) == ([], [])

    run(main())


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_object_that_appears_in_time_is_no_failure(times: int) -> None:
    """The upload ended a moment after the message came."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["hash-1"] = [MISSING] * times
            service.queue.put(hash_job())
            await service.until_done()
            assert [webhook.status for webhook, _ in service.server.sent] == ["SUCCESS"]
            assert len(service.executor.begun) == times + 1

    run(main())


def test_looking_again_keeps_nobody_from_working() -> None:
    """While a job waits for its object, its worker does others."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(light=1)) as service:
            service.executor.plan["hash-1"] = [MISSING]
            service.queue.put(stem_job(1))
            service.queue.put(stem_job(2))
            await service.until_done()
            assert service.executor.ids == ["hash-1", "hash-2", "hash-1"]

    run(main())


def test_an_unforeseen_error_gives_the_job_back() -> None:
    """A mistake of ours costs a wait, never a message, and stops nobody else."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["hash-1"] = [RuntimeError("a bug")]
            service.queue.put(stem_job(1))
            service.queue.put(stem_job(2))
            await service.until(lambda: service.queue.released)
            await service.until(lambda: service.queue.deleted)
            assert service.queue.released == [("m1", 60)]
            assert service.queue.deleted == ["m2"]

    run(main())


# --- the order of reports


def test_jobs_of_one_subject_are_reported_in_order_one_at_a_time() -> None:
    """The later job is finished first, and waits for the earlier one's webhook."""

    async def main() -> None:
        async with Service() as service:
            service.server.takes_s = 5
            service.executor.hold("first")
            service.queue.put(analysis_job("first"))
            service.queue.put(analysis_job("second"))
            await settle(10)
            assert sorted(service.executor.ids) == ["first", "second"]
            assert service.server.sent == []
            service.executor.let_go("first")
            await service.until_done()
            subjects = [webhook.subject for webhook, _ in service.server.sent]
            assert subjects == ["stem:stem-1"] * 2
            assert service.server.most_at_once["stem:stem-1"] == 1
            assert service.queue.deleted == ["m1", "m2"]

    run(main())


def test_order_is_that_of_sending_not_of_receiving() -> None:
    """SQS mixes messages up; the time of sending is what the main server meant."""

    async def main() -> None:
        async with Service() as service:
            for job_id, sent_ms in [("late", 2000), ("early", 1000)]:
                service.executor.hold(job_id)
                service.queue.put(hash_job(job_id, timestamp=job_id), sent_ms=sent_ms)
            await settle(1)
            service.executor.let_go("late")
            await settle(1)
            assert service.server.sent == []
            service.executor.let_go("early")
            await service.until_done()
            assert [p["timestamp"] for p in service.server.payloads] == ["early", "late"]

    run(main())


def test_other_subjects_do_not_wait() -> None:
    """A slow analysis holds up its own stem and no other; a stage is no stem."""

    async def main() -> None:
        async with Service() as service:
            service.executor.hold("slow")
            service.queue.put(analysis_job("slow", stemId="1"))
            service.queue.put(hash_job("other", stemId="2"))
            service.queue.put(mix_job("mix", stageId="1"))
            await service.until(lambda: len(service.queue.deleted) == 2)
            subjects = {webhook.subject for webhook, _ in service.server.sent}
            assert subjects == {"stem:2", "stage:1"}

    run(main())


def test_a_job_that_goes_back_does_not_hold_up_its_subject() -> None:
    """It reports when it comes again, hours later perhaps."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["first"] = [TRANSIENT]
            service.queue.put(hash_job("first"))
            service.queue.put(hash_job("second"))
            await service.until(lambda: service.queue.deleted)
            assert service.queue.deleted == ["m2"]
            assert service.queue.released == [("m1", 60)]

    run(main())


# --- how much at a time


def test_light_jobs_are_not_held_up_by_heavy_ones() -> None:
    """A hash takes a moment: it does not wait behind a hundred analyses."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(light=1, heavy=1)) as service:
            jobs: list[Job] = [analysis_job(f"a{i}", stemId=f"a{i}") for i in range(20)]
            jobs += [mix_job(f"m{i}", stageId=f"m{i}") for i in range(20)]
            service.executor.hold(*(str(job.job_id) for job in jobs))
            for job in jobs:
                service.queue.put(job)
            await settle(5)
            assert len(service.executor.ids) == 1
            service.queue.put(stem_job(1))
            await service.until(lambda: service.queue.deleted)
            assert service.executor.ids == ["a0", "hash-1"]

    run(main())


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_no_more_run_than_fit(kind: str) -> None:
    """What is over the cluster's slots waits here, in the order in which it came."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(light=3, heavy=3)) as service:
            make = stem_job if kind == "light" else lambda i: analysis_job(f"hash-{i}", stemId=i)
            names = [f"hash-{i}" for i in range(8)]
            service.executor.hold(*names)
            for i in range(8):
                service.queue.put(make(i))
            await settle(5)
            assert service.executor.ids == names[:3]
            stages = service.ingress.status()["in_flight"]
            assert list(stages.values()) == [{"running": 3, "waiting": 5}]
            for i in range(8):
                service.executor.let_go(names[i])
                await settle(5)
                assert service.executor.ids == names[: i + 4]
            await service.until_done()

    run(main())


def test_slots_follow_the_cluster() -> None:
    """The autoscaler adds a node: more run, without a restart."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(light=1)) as service:
            service.executor.hold(*(f"hash-{i}" for i in range(6)))
            for i in range(6):
                service.queue.put(stem_job(i))
            await settle(1)
            assert len(service.executor.ids) == 1
            service.executor.light = 4
            await settle(5)
            assert len(service.executor.ids) == 4
            assert service.ingress.status()["slots"]["light"] == 4

    run(main())


def test_mixes_leave_room_for_what_they_wait_for() -> None:
    """On a small cluster a second mix waits, and an analysis behind it does not."""

    async def main() -> None:
        async with Service(executor=FakeExecutor(heavy=3, mixes=1)) as service:
            service.executor.hold("mix-0", "mix-1", "a")
            for number in range(2):
                mix = MixJob(job_id=f"mix-{number}", stageId=f"stage-{number}", stem_paths=["a"])
                service.queue.put(mix)
            service.queue.put(AnalysisJob(job_id="a", stemId="s", filepath="a.wav"))
            await settle(1)
            assert service.executor.ids == ["mix-0", "a"]
            service.executor.let_go("mix-0")
            await settle(1)
            assert service.executor.ids == ["mix-0", "a", "mix-1"]

    run(main())


@pytest.mark.parametrize("most", [1, 7, 25])
def test_what_is_in_hand_is_bounded(most: int) -> None:
    """MAX_IN_FLIGHT is the most messages held at one time; the queue keeps the rest."""

    async def main() -> None:
        async with Service(max_in_flight=most) as service:
            service.executor.hold(*(f"hash-{i}" for i in range(60)))
            for i in range(60):
                service.queue.put(stem_job(i))
            for i in range(60):
                await settle(1)
                in_hand = len(service.queue.leased)
                assert in_hand == min(most, 60 - i)
                service.executor.let_go(service.executor.ids[i])
            await service.until_done()

    run(main())


def test_a_webhook_that_the_server_fails_at_does_not_stop_the_others() -> None:
    """Alone in hand it looks as if the server were away, until another one is answered."""

    async def main() -> None:
        async with Service(webhook_give_up_s=600) as service:
            service.server.never = {"stem:stem-1"}
            service.queue.put(stem_job(1))
            await settle(300)
            assert service.ingress.status()["main_server_away"] is True
            for i in range(2, 40):
                service.queue.put(stem_job(i))
            await settle(100)
            assert len(service.queue.deleted) == 38
            assert service.ingress.status()["main_server_away"] is False
            for i in range(40, 140):
                service.queue.put(stem_job(i))
                await settle(10)
            assert [code for _, code, _ in service.queue.buried] == ["webhook_undelivered"]
            await service.until_done()

    run(main())


def test_a_failure_that_is_decided_again_is_told_in_the_same_words() -> None:
    """The message was not deleted in time: its second delivery says nothing new."""

    async def main() -> None:
        sent = []
        kept = {}
        for _ in range(2):  # the second ingress knows nothing of the first
            async with Service() as service:
                service.executor.kept = kept
                error = JobError(ErrorCode.UNDECODABLE_AUDIO, "broken")
                service.executor.plan["hash-1"] = [error]
                service.queue.put(stem_job(1))
                await service.until_done()
                kept = service.executor.kept
                sent += [webhook for webhook, _ in service.server.sent]
        assert len(sent) == 2
        assert sent[0] == sent[1]

    run(main())


def test_intake_pauses_while_the_main_server_is_away() -> None:
    """Outcomes wait, leases are renewed, nothing is computed that cannot be told."""

    async def main() -> None:
        async with Service() as service:
            service.server.standing = AWAY
            service.queue.put(stem_job(1))
            await service.until(lambda: service.server.sent)
            await settle(25)  # longer than a poll: the ones under way have ended
            for i in range(2, 40):
                service.queue.put(stem_job(i))
            await settle(200)
            # A few, to ask with; the queue keeps the rest.
            assert len(service.queue.visible) == 35
            assert service.executor.ids == [f"hash-{i}" for i in range(1, 5)]
            status = service.ingress.status()
            assert status["main_server_away"] is True
            assert status["webhook_retries"] > 10
            assert status["in_flight"] == {"hash": {"reporting": 4}}
            assert len(service.queue.renewed) >= 200 // 30
            service.server.standing = DELIVERED
            await service.until_done()
            assert len(service.executor.ids) == 39
            assert service.ingress.status()["main_server_away"] is False

    run(main())


# --- webhooks that cannot be delivered


@pytest.mark.parametrize(
    ("answer", "code", "after_s"),
    [(REFUSED, "webhook_refused", 0), (FAULT, "webhook_undelivered", 60)],
)
def test_an_undeliverable_webhook_is_kept_with_the_answer(
    answer: Any, code: str, after_s: float
) -> None:
    """The message goes to the dead-letter queue with what the server said, and can be replayed."""

    async def main() -> None:
        async with Service(webhook_give_up_s=60) as service:
            began = now()
            service.server.standing = answer
            service.queue.put(hash_job())
            await service.until_done()
            assert after_s <= now() - began <= after_s + 30
            assert service.queue.buried == [("m1", code, answer.text)]
            assert service.queue.deleted == ["m1"]
            service.server.standing = DELIVERED
            service.queue.put(hash_job())
            await service.until_done()
            assert service.executor.ids == ["hash-1", "hash-1"]
            assert len({webhook for webhook, _ in service.server.sent}) == 1

    run(main())


def test_without_a_dead_letter_queue_an_unreported_message_stays() -> None:
    """Nobody knows of it and there is nowhere to keep it: it comes again after 300 s."""

    async def main() -> None:
        async with Service(FakeQueue(has_dlq=False)) as service:
            service.server.standing = REFUSED
            service.queue.put(hash_job())
            await service.until(lambda: service.queue.released)
            assert service.queue.released == [("m1", 300)]
            assert service.queue.deleted == []
            assert service.ingress.status()["in_flight"] == {}
            assert "dead_letters" not in service.ingress.status()["done"]

    run(main())


def test_without_a_dead_letter_queue_a_rejection_about_nobody_stays() -> None:
    """It was neither told nor kept, so it is not deleted either."""

    async def main() -> None:
        async with Service(FakeQueue(has_dlq=False)) as service:
            service.queue.put("hello")
            await service.until(lambda: service.queue.released)
            assert (service.queue.released, service.queue.deleted) == ([("m1", 300)], [])

    run(main())


def test_a_failure_that_nobody_is_told_of_is_kept() -> None:
    """A mix without a stage has no webhook; its failure is found in the dead-letter queue."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["mix-1"] = [PERMANENT]
            service.queue.put(mix_job(stageId=None))
            await service.until_done()
            assert [(m, code) for m, code, _ in service.queue.buried] == [
                ("m1", "undecodable_audio")
            ]
            assert service.server.sent == []

    run(main())


def test_without_a_dead_letter_queue_a_reported_failure_is_deleted() -> None:
    """Who waits for it knows; and what was kept nowhere is not counted as kept."""

    async def main() -> None:
        async with Service(FakeQueue(has_dlq=False)) as service:
            service.executor.plan["hash-1"] = [TRANSIENT]
            service.queue.put(hash_job(), receives=3)
            await service.until_done()
            assert service.queue.deleted == ["m1"]
            done = service.ingress.status()["done"]
            assert (done["hash:FAILURE"], done.get("dead_letters", 0)) == (1, 0)

    run(main())


def test_a_dead_letter_queue_that_is_away_keeps_the_message_where_it_is() -> None:
    """First kept, then deleted: in between nothing can be lost."""

    async def main() -> None:
        async with Service() as service:
            service.queue.broken["bury"] = [DOWN]
            service.queue.put("hello")
            await service.until(lambda: service.queue.released)
            assert service.queue.deleted == []
            assert service.queue.buried == []

    run(main())


# --- a queue that is not well


def test_a_queue_that_is_away_at_the_start_is_waited_for() -> None:
    """The service starts before its queue does, and works when it is there."""

    async def main() -> None:
        queue = FakeQueue(broken={"facts": [DOWN] * 5})
        queue.put(hash_job())
        async with Service(queue) as service:
            await service.until_done()
            assert queue.deleted == ["m1"]

    run(main())


def test_a_poll_that_fails_is_repeated() -> None:
    """After a pause, for as long as it takes."""

    async def main() -> None:
        queue = FakeQueue(broken={"receive": [DOWN] * 20})
        queue.put(hash_job())
        async with Service(queue) as service:
            began = now()
            await service.until_done()
            assert queue.deleted == ["m1"]
            assert now() - began >= 10

    run(main())


@pytest.mark.parametrize(
    ("queue", "warning"),
    [
        (FakeQueue(has_dlq=False), "no dead-letter queue"),
        (FakeQueue(max_receives=3), "redrive policy"),
        (FakeQueue(max_receives=10), None),
    ],
)
def test_a_redrive_policy_that_does_not_fit_is_named_at_the_start(
    queue: FakeQueue, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator learns it from the log, not from lost messages."""

    async def main() -> None:
        async with Service(queue, max_retries=3):
            pass

    with caplog.at_level(logging.WARNING, "waveflow_ray"):
        run(main())
    assert [warning in record.message for record in caplog.records if warning] == (
        [True] if warning else []
    )


def test_every_job_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Ids, outcome, times and how it was reported, to be found by any of them."""

    async def main() -> None:
        async with Service() as service:
            service.executor.plan["hash-2"] = [PERMANENT]
            service.queue.put(stem_job(1))
            service.queue.put(stem_job(2))
            await service.until_done()

    with caplog.at_level(logging.INFO, "waveflow_ray"):
        run(main())
    lines = {r.fields["job_id"]: r for r in caplog.records if r.message == "job"}  # type: ignore[attr-defined]
    assert lines.keys() == {"hash-1", "hash-2"}
    well, badly = lines["hash-1"], lines["hash-2"]
    assert (well.levelname, badly.levelname) == ("INFO", "WARNING")
    for name, value in {
        "kind": "hash",
        "stemId": "stem-1",
        "outcome": "SUCCESS",
        "attempt": 1,
        "webhook": "delivered",
        "webhook_attempts": 1,
    }.items():
        assert well.fields[name] == value  # type: ignore[attr-defined]
    assert {"queue", "webhook"} <= well.fields["seconds"].keys()  # type: ignore[attr-defined]
    assert badly.fields["code"] == "undecodable_audio"  # type: ignore[attr-defined]
    assert badly.fields["error"] == "The file is not audio."  # type: ignore[attr-defined]
    assert badly.fields["detail"] == "libsndfile 7"  # type: ignore[attr-defined]
