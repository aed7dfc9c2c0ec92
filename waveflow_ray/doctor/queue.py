"""The job queue and its dead-letter queue."""

from __future__ import annotations

from collections.abc import Iterator

from waveflow_ray.aws.sqs import Queue, QueueError, QueueFacts, faults, queue_of
from waveflow_ray.doctor.findings import Finding, Group
from waveflow_ray.settings import Settings

GROUP = Group("Queue")
DAY_S = 86_400
RETENTION_S = 4 * DAY_S
SPARE_RECEIVES = 2
SEE = "see 'Queue' in docs/operations.md"


def check(settings: Settings) -> Iterator[Finding]:
    """Both queues: that they answer, and their attributes."""
    try:
        queue = queue_of(settings)
        facts = queue.facts()
        attributes = _attributes(queue)
    except QueueError as error:
        name = "SQS_QUEUE_URL" if settings.sqs_queue_url else "SQS_QUEUE_NAME"
        yield GROUP.fail("queue", str(error), f"check {name}, AWS_REGION and the permissions")
        return
    if queue.url.endswith(".fifo"):
        mend = "use a standard queue; order is kept by the service"
        yield GROUP.fail("queue", f"{queue.url} is a FIFO queue", mend)
    else:
        found = f"{queue.url}: {facts.visible} waiting, {facts.in_flight} in flight"
        yield GROUP.ok("queue", found)
    yield _retention("retention", attributes)
    delay_s = int(attributes.get("DelaySeconds", 0))
    yield GROUP.judge("delay", delay_s == 0, f"{delay_s} s", "set DelaySeconds to 0")
    yield from _dead_letters(settings, queue, facts)


def _retention(name: str, attributes: dict[str, str]) -> Finding:
    kept_s = int(attributes.get("MessageRetentionPeriod", 0))
    mend = f"set MessageRetentionPeriod to 1209600 (14 days); {SEE}"
    return GROUP.judge(name, kept_s >= RETENTION_S, f"{kept_s / DAY_S:g} days", mend)


def _dead_letters(settings: Settings, queue: Queue, facts: QueueFacts) -> Iterator[Finding]:
    if facts.max_receives is None:
        mend = f"set a redrive policy with maxReceiveCount 10; {SEE}"
        yield GROUP.fail("redrive", "there is no redrive policy", mend)
    else:
        yield _redrive(settings, facts.max_receives)
    if facts.dlq_url is None:
        return
    if facts.dlq_url == queue.url:
        mend = "take another queue as SQS_DLQ_URL"
        yield GROUP.fail("dead letters", "they go to the job queue", mend)
        return
    dead = Queue(queue.client, facts.dlq_url)
    try:
        attributes, waiting = _attributes(dead), dead.facts().visible
    except QueueError as error:
        yield GROUP.fail("dead letters", str(error), "see 'Permissions' in docs/operations.md")
        return
    found = f"{facts.dlq_url}: {waiting} waiting"
    yield GROUP.judge("dead letters", waiting == 0, found, "`waveflow dlq list` tells why")
    yield _retention("their retention", attributes)


def _redrive(settings: Settings, max_receives: int) -> Finding:
    found = f"maxReceiveCount {max_receives}, MAX_RETRIES {settings.max_retries}"
    enough = max_receives > settings.max_retries + SPARE_RECEIVES
    mend = (
        f"raise maxReceiveCount to {max(10, settings.max_retries + 5)}: crashes and drains count, "
        "and what SQS moves by itself is reported to nobody"
    )
    if max_receives <= settings.max_retries:
        return GROUP.fail("redrive", found, mend)
    return GROUP.judge("redrive", enough, found, mend)


def _attributes(queue: Queue) -> dict[str, str]:
    with faults(queue.url):
        answer = queue.client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=["All"])
    return {str(name): value for name, value in answer["Attributes"].items()}
