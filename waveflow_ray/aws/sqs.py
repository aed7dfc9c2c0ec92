"""The job queue: receive, renew, release, delete, dead-letter. Plain blocking calls.

A message's lease is its visibility timeout. The runtime calls these from threads.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from waveflow_ray.aws.clients import sqs_connections, sqs_of
from waveflow_ray.aws.connections import Connections
from waveflow_ray.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import (
        ChangeMessageVisibilityBatchResultTypeDef,
        DeleteMessageBatchResultTypeDef,
        MessageTypeDef,
        ReceiveMessageResultTypeDef,
    )

BATCH = 10
MAX_VISIBILITY_S = 43_200
JSON = "application/x-amz-json-1.0"
LOST_CODES = frozenset(
    {
        "ReceiptHandleIsInvalid",
        "MessageNotInflight",
        "InvalidParameterValue",
        "AWS.SimpleQueueService.MessageNotInflight",
    }
)


class QueueError(Exception):
    """The queue could not be reached, or refused. The text names the queue and the cause."""


@dataclass(frozen=True)
class Message:
    """One received message.

    Attributes:
        sent_ms: when it was sent, milliseconds since 1970.
        receives: how often it was received, this time included.
        age_s: how long ago it was sent when it was received.
    """

    id: str
    handle: str
    body: str
    sent_ms: int
    receives: int
    age_s: float = 0.0


@dataclass(frozen=True)
class QueueFacts:
    """What the queue says of itself; `max_receives` and `dlq_url` come from its redrive policy."""

    visible: int
    in_flight: int
    delayed: int
    max_receives: int | None
    dlq_url: str | None


class Queue:
    """One SQS queue. Safe to use from several threads.

    Args:
        connections: make the frequent requests, if given; boto3 makes all others, and those that
            fail.
    """

    def __init__(
        self,
        client: SQSClient,
        url: str,
        dlq_url: str | None = None,
        connections: Connections | None = None,
    ) -> None:
        self.client = client
        self.url = url
        self._dlq_url = dlq_url
        self._connections = connections

    def facts(self) -> QueueFacts:
        """Depths and redrive policy."""
        with faults(self.url):
            attributes = self.client.get_queue_attributes(
                QueueUrl=self.url, AttributeNames=["All"]
            )["Attributes"]
        policy: dict[str, Any] = json.loads(attributes.get("RedrivePolicy") or "{}")
        max_receives = policy.get("maxReceiveCount")
        if self._dlq_url is None and policy.get("deadLetterTargetArn"):
            name = str(policy["deadLetterTargetArn"]).rpartition(":")[2]
            with faults(name):
                self._dlq_url = self.client.get_queue_url(QueueName=name)["QueueUrl"]
        return QueueFacts(
            visible=int(attributes.get("ApproximateNumberOfMessages", 0)),
            in_flight=int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0)),
            delayed=int(attributes.get("ApproximateNumberOfMessagesDelayed", 0)),
            max_receives=int(max_receives) if max_receives else None,
            dlq_url=self._dlq_url,
        )

    def dead_letters(self) -> int | None:
        """How many messages the dead-letter queue holds; None if there is none.

        It is known after `facts` was called once.
        """
        if self._dlq_url is None:
            return None
        facts = Queue(self.client, self._dlq_url).facts()
        return facts.visible + facts.in_flight + facts.delayed

    def receive(self, wait_s: int, visibility_s: int, count: int = BATCH) -> list[Message]:
        """Long-poll for up to `count` messages and lease each for `visibility_s`."""
        response: ReceiveMessageResultTypeDef = self._ask(
            "receive_message",
            MaxNumberOfMessages=min(count, BATCH),
            WaitTimeSeconds=wait_s,
            VisibilityTimeout=visibility_s,
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
        )
        return [_message(entry) for entry in response.get("Messages", [])]

    def set_visibility(self, handles: Sequence[str], visibility_s: int) -> set[str]:
        """Renew leases, or release them with 0. At most 10.

        Returns:
            The handles whose lease is lost: someone else may have the message.

        Raises:
            QueueError: the queue did not answer, or failed for a reason that may pass.
        """
        response: ChangeMessageVisibilityBatchResultTypeDef = self._ask(
            "change_message_visibility_batch",
            Entries=[
                {
                    "Id": str(index),
                    "ReceiptHandle": handle,
                    "VisibilityTimeout": min(visibility_s, MAX_VISIBILITY_S),
                }
                for index, handle in enumerate(handles)
            ],
        )
        codes = {
            handles[int(failure["Id"])]: failure.get("Code", "").rpartition("#")[2]
            for failure in response.get("Failed", [])
        }
        lost = {handle for handle, code in codes.items() if code in LOST_CODES}
        if len(lost) < len(codes):
            others = sorted(set(codes.values()) - LOST_CODES)
            raise QueueError(f"{self.url}: {len(codes) - len(lost)} leases: {', '.join(others)}")
        return lost

    def delete(self, handles: Sequence[str]) -> set[str]:
        """Delete messages, at most 10. Returns the handles that could not be deleted now."""
        response: DeleteMessageBatchResultTypeDef = self._ask(
            "delete_message_batch",
            Entries=[
                {"Id": str(index), "ReceiptHandle": handle} for index, handle in enumerate(handles)
            ],
        )
        return {
            handles[int(failure["Id"])]
            for failure in response.get("Failed", [])
            if not failure.get("SenderFault", False)
        }

    def send(self, body: str) -> str:
        """Queue a message. Returns its MessageId."""
        with faults(self.url):
            return self.client.send_message(QueueUrl=self.url, MessageBody=body)["MessageId"]

    def bury(self, message: Message, code: str, reason: str, job_id: str) -> bool:
        """Copy a message to the dead-letter queue with the reason. False if there is none."""
        if self._dlq_url is None:
            return False
        texts = {
            "code": code,
            "reason": reason,
            "job_id": job_id,
            "message_id": message.id,
            "attempts": str(message.receives),
        }
        with faults(self._dlq_url):
            self.client.send_message(
                QueueUrl=self._dlq_url,
                MessageBody=message.body,
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": _attribute(text)}
                    for name, text in texts.items()
                },
            )
        return True

    def _ask(self, call: str, **parameters: Any) -> Any:
        """The answer to a call of boto3's, by a plain request if that goes as usual."""
        parameters["QueueUrl"] = self.url
        if self._connections is not None:
            operation = call.title().replace("_", "")
            sent = self._connections.send(
                "POST",
                "/",
                {"content-type": JSON, "x-amz-target": f"AmazonSQS.{operation}"},
                json.dumps(parameters).encode(),
            )
            content = None if sent is None else self._connections.rest(*sent)
            if sent is not None and content is not None and sent[0].status == 200:
                with suppress(ValueError):
                    return json.loads(content)
        with faults(self.url):
            return getattr(self.client, call)(**parameters)


def queue_of(settings: Settings) -> Queue:
    """The queue that the settings name.

    Raises:
        QueueError: there is no queue of that name, or it cannot be reached.
    """
    client = sqs_of(settings)
    url = settings.sqs_queue_url
    if url is None:
        with faults(settings.sqs_queue_name or ""):
            url = client.get_queue_url(QueueName=settings.sqs_queue_name or "")["QueueUrl"]
    connections = sqs_connections(settings.aws_region, settings.aws_endpoint_url)
    return Queue(client, url, settings.sqs_dlq_url, connections)


def _message(entry: MessageTypeDef) -> Message:
    attributes = entry.get("Attributes", {})
    sent_ms = int(attributes.get("SentTimestamp", 0))
    return Message(
        id=entry["MessageId"],
        handle=entry["ReceiptHandle"],
        body=entry["Body"],
        sent_ms=sent_ms,
        receives=int(attributes.get("ApproximateReceiveCount", 1)),
        age_s=max(0.0, time.time() - sent_ms / 1000) if sent_ms else 0.0,
    )


def _attribute(text: str) -> str:
    """Text as SQS takes it in an attribute: some characters are not allowed, nor is none at all."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]", "\ufffd", text)[:2000] or "-"


@contextmanager
def faults(queue: str) -> Iterator[None]:
    """Map what boto3 raises to `QueueError`, once."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise QueueError(f"{queue}: {type(error).__name__}: {error}") from error
