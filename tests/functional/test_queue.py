"""Requests to SQS made by hand: the same results as boto3's, and boto3 where they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.proxy import Asked, Fault, proxy
from tests.support import World
from waveflow_ray.aws.clients import sqs_client, sqs_connections
from waveflow_ray.aws.sqs import Queue
from waveflow_ray.local.aws import REGION


@pytest.fixture
def url(world: World) -> Iterator[str]:
    """A queue of the test's own."""
    client = world.queue.client
    made = client.create_queue(QueueName="by-hand", Attributes={"VisibilityTimeout": "1"})
    yield made["QueueUrl"]
    client.delete_queue(QueueUrl=made["QueueUrl"])


@contextmanager
def faulty(
    world: World, url: str, fault: Fault, operation: str
) -> Iterator[tuple[Queue, list[str]]]:
    """The queue behind a proxy that does this to the first such request; and what was asked."""
    asked: list[str] = []

    def choose(one: Asked) -> Fault | None:
        asked.append(one.operation)
        return fault if one.operation == operation and asked.count(operation) == 1 else None

    with proxy(world.aws.endpoint, choose=choose) as between:
        connections = sqs_connections(REGION, between.url)
        assert connections is not None
        yield Queue(sqs_client(REGION, between.url), url, connections=connections), asked


def test_messages_are_received_renewed_and_deleted_without_boto3(world: World, url: str) -> None:
    """With what the ingress needs to know of them; a lease that is lost is told."""
    connections = sqs_connections(REGION, world.aws.endpoint)
    queue = Queue(None, url, connections=connections)  # type: ignore[arg-type] # not to be used
    bodies = {f"job {number} with ünïcode" for number in range(3)}
    for body in bodies:
        world.queue.client.send_message(QueueUrl=url, MessageBody=body)
    messages = [message for _ in range(3) for message in queue.receive(1, 60, 1)]
    assert {message.body for message in messages} == bodies
    assert all(message.receives == 1 and message.sent_ms > 1.7e12 for message in messages)
    handles = [message.handle for message in messages]
    assert queue.set_visibility(handles, 120) == set()
    assert queue.delete(handles) == set()
    assert queue.set_visibility(handles[:1], 120) == set(handles[:1])
    assert queue.receive(0, 60) == []


@pytest.mark.parametrize("fault", ["drop", "lose", "unavailable", "error", "cut"])
@pytest.mark.parametrize("operation", ["ReceiveMessage", "DeleteMessageBatch"])
def test_whatever_goes_wrong_boto3_tries_again(
    world: World, url: str, fault: Fault, operation: str
) -> None:
    """A message whose answer was lost comes again when its lease ends, a second later."""
    world.queue.client.send_message(QueueUrl=url, MessageBody="job")
    with faulty(world, url, fault, operation) as (queue, asked):
        (message,) = queue.receive(10, 1)
        assert message.body == "job"
        assert queue.delete([message.handle]) == set()
        assert asked.count(operation) == 2
