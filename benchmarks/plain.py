"""A consumer as tutorials write it, to measure beside: `python -m benchmarks.plain`.

One message at a time: download to a temporary file, do it, post the result, delete the message.
It guarantees nothing: no leases, no retries, no order, no index of copies.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from typing import Any

import boto3
import numpy as np
import requests
import soundfile as sf


def analyse(path: str, num_peaks: int = 4000) -> dict[str, Any]:
    """Waveform of a file: the whole of it in memory, numpy over all."""
    samples, rate = sf.read(path, always_2d=True)
    mono = np.abs(samples.mean(axis=1))
    bucket = max(1, len(mono) // num_peaks)
    peaks = mono[: bucket * num_peaks].reshape(-1, bucket).max(axis=1)
    top = peaks.max() or 1.0
    return {"peaks": (peaks / top).round(4).tolist(), "sample_rate": rate}


def main() -> None:
    queue, bucket = os.environ["SQS_QUEUE_URL"], os.environ["S3_BUCKET_NAME"]
    webhooks = os.environ["WEBHOOK_URL"]
    sqs, s3 = boto3.client("sqs"), boto3.client("s3")
    while True:
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=1, WaitTimeSeconds=10)
        for message in answer.get("Messages", []):
            job = json.loads(message["Body"])
            fields = job["kwargs"]
            with tempfile.NamedTemporaryFile(suffix=".wav") as file:
                s3.download_file(bucket, fields["filepath"], file.name)
                with open(file.name, "rb") as content:
                    sha256 = hashlib.sha256(content.read()).hexdigest()
                result = {"stemId": fields["stemId"], "audio_hash": sha256}
                path = "/hash-check"
                if "analysis" in job["task"]:
                    key = f"waveforms/{fields['stemId']}.json"
                    s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(analyse(file.name)))
                    path, result["audio_wave_path"] = "/completion", key
            requests.post(webhooks + path, json=result, timeout=30).raise_for_status()
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])


if __name__ == "__main__":
    main()
