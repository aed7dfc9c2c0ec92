"""Hashing an object in S3, beside boto3 as tutorials use it."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks import inputs
from benchmarks.audio import SONG_S, sha256
from benchmarks.service import Store, store
from benchmarks.timing import Report, compare
from waveflow_ray.aws.clients import s3_wire
from waveflow_ray.aws.s3 import CHUNK_BYTES, Bucket
from waveflow_ray.local.aws import REGION

OF_THE_SLOWER = 1 / 0.9
OF_DOWNLOADING = 0.5


def streamed(bucket: Bucket, key: str) -> None:
    """The object through boto3, and nothing done with it."""
    body = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"]
    for _ in body.iter_chunks(CHUNK_BYTES):
        pass


def downloaded(bucket: Bucket, key: str) -> None:
    """To a file, which is then hashed."""
    with tempfile.NamedTemporaryFile() as file:
        bucket.client.download_file(bucket.name, key, file.name)
        with open(file.name, "rb") as content:
            hashlib.file_digest(content, "sha256").hexdigest()


def measure(folder: Path, runs: int) -> Report:
    """One object of 42 MB."""
    (path,) = inputs.stems(folder, 1, SONG_S, "wav", "PCM_16")
    with store() as aws:
        bucket = of_the_service(aws)
        key = "bench/song.wav"
        bucket.client.upload_file(str(path), bucket.name, key)
        alone: dict[str, Callable[[], None]] = {
            "boto3 get_object, not hashed": lambda: streamed(bucket, key),
            "hashlib's SHA-256 of a file": lambda: sha256(path),
        }
        name = "SHA-256 of a 42 MB object"
        rows = [compare(name, lambda: bucket.hash(key), p, c, runs) for p, c in alone.items()]
        slower = max(rows, key=lambda row: statistics.median(row.peer_s))
        rows[rows.index(slower)] = slower.with_target(OF_THE_SLOWER)
        rows.append(
            compare(
                name,
                lambda: bucket.hash(key),
                "boto3 download_file, then hash",
                lambda: downloaded(bucket, key),
                runs,
                OF_DOWNLOADING,
            )
        )
        facts = {"S3": aws.backend, "boto3": version("boto3")}
    return Report("Hash from S3", {"in a warm process": rows}, [], facts)


def of_the_service(aws: Store) -> Bucket:
    """The bucket as workers use it."""
    return Bucket(aws.bucket.client, aws.name, s3_wire(REGION, aws.endpoint, aws.name))
