"""The dead-letter queue: look through it, send messages back, throw them away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from waveflow_ray.aws.sqs import BATCH, Queue, faults
from waveflow_ray.messages import parse

LOOK_S = 60
"""Letters that are looked at are hidden so long, or until they are put back."""
WAIT_S = 1
"""So long SQS looks for letters before it says that there are none."""
EMPTY_LOOKS = 2
"""SQS asks some of its servers at a time: one empty answer is no proof."""


@dataclass(frozen=True)
class DeadLetter:
    """A message in the dead-letter queue, and why it is there.

    Attributes:
        id: of the message in this queue.
        handle: for putting it back or deleting it.
        code, reason: empty where SQS moved it by itself.
        attempts: how often it was received before; 0 if that is not known.
        age_s: seconds since it came here.
        kind, subject: of the job, as far as it can be read.
    """

    id: str
    handle: str
    body: str
    code: str
    reason: str
    job_id: str
    attempts: int
    age_s: float
    kind: str
    subject: str


class DeadLetters:
    """The letters of one queue. Use it in a ``with`` statement: what was looked at and not
    deleted is put back at its end."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._held: dict[str, str] = {}

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(self, *_: object) -> None:
        handles = list(self._held.values())
        for start in range(0, len(handles), BATCH):
            self._queue.set_visibility(handles[start : start + BATCH], 0)

    def letters(self, limit: int) -> Iterator[DeadLetter]:
        """Each letter once, at most `limit`."""
        empty = 0
        while empty < EMPTY_LOOKS and len(self._held) < limit:
            with faults(self._queue.url):
                response = self._queue.client.receive_message(
                    QueueUrl=self._queue.url,
                    MaxNumberOfMessages=min(BATCH, limit - len(self._held)),
                    WaitTimeSeconds=WAIT_S,
                    VisibilityTimeout=LOOK_S,
                    MessageSystemAttributeNames=["SentTimestamp"],
                    MessageAttributeNames=["All"],
                )
            entries = response.get("Messages", [])
            empty = 0 if entries else empty + 1
            for entry in entries:
                known = entry["MessageId"] in self._held
                self._held[entry["MessageId"]] = entry["ReceiptHandle"]
                if known:
                    continue
                texts = {
                    name: value.get("StringValue", "")
                    for name, value in entry.get("MessageAttributes", {}).items()
                }
                job = parse(entry["Body"], texts.get("message_id", entry["MessageId"]))
                sent_s = int(entry.get("Attributes", {}).get("SentTimestamp", 0)) / 1000
                yield DeadLetter(
                    id=entry["MessageId"],
                    handle=entry["ReceiptHandle"],
                    body=entry["Body"],
                    code=texts.get("code", ""),
                    reason=texts.get("reason", ""),
                    job_id=texts.get("job_id", str(job.job_id)),
                    attempts=int(texts["attempts"]) if texts.get("attempts", "").isdigit() else 0,
                    age_s=max(0.0, time.time() - sent_s),
                    kind=job.kind,
                    subject=job.subject or "",
                )

    def replay(self, letter: DeadLetter, send: Callable[[str], object]) -> None:
        """Send a letter's message as a new one; only then is it deleted here."""
        send(letter.body)
        self.delete(letter)

    def delete(self, letter: DeadLetter) -> None:
        """Throw a letter away."""
        self._queue.delete([self._held.get(letter.id, letter.handle)])
        self._held.pop(letter.id, None)
