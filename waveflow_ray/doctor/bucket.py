"""The bucket, by doing to an object of the doctor's own what jobs do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress

from botocore.exceptions import ClientError

from waveflow_ray.aws.kept import PREFIX as OUTCOMES
from waveflow_ray.aws.s3 import Bucket, bucket_of
from waveflow_ray.doctor.findings import Finding, Group
from waveflow_ray.errors import ErrorCode, JobError
from waveflow_ray.settings import Settings

GROUP = Group("Bucket")
PROBES = "_waveflow/doctor/"
PERMISSIONS = "see 'Permissions' in docs/operations.md"
CONTENT = b"a probe of `waveflow doctor`; it may be deleted"


def check(settings: Settings) -> Iterator[Finding]:
    """Region, and put, get, list, delete of a probe."""
    bucket = bucket_of(settings)
    try:
        answer = bucket.client.head_bucket(Bucket=bucket.name)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        found = f"{bucket.name}: {error}"
        mend = "create it, or correct S3_BUCKET_NAME" if code == "404" else PERMISSIONS
        yield GROUP.fail("bucket", found, mend)
        return
    region = answer.get("BucketRegion")
    if region and region != settings.aws_region:
        mend = f"set AWS_REGION={region}"
        yield GROUP.fail("bucket", f"{bucket.name} is in {region}", mend)
    else:
        yield GROUP.ok("bucket", bucket.name)
    yield from _probe(bucket)
    yield from _lifecycle(bucket)


def _probe(bucket: Bucket) -> Iterator[Finding]:
    key = f"{PROBES}{uuid.uuid4().hex}"
    try:
        step = "put"
        etag = bucket.put_if(key, CONTENT, "text/plain", None)
        yield GROUP.ok("put", "an object was written")
        step = "condition"
        yield GROUP.judge(
            "condition",
            bucket.put_if(key, CONTENT, "text/plain", None) is None,
            "writes with a condition are heeded",
            "the storage does not know If-None-Match, on which kept outcomes and the guard of "
            "duplicates rest: use S3, or one service and one try per job",
        )
        step = "get"
        read = bucket.get(key)
        if read is None or read[0] != CONTENT:
            yield GROUP.fail("get", "what was read is not what was written", "ask who runs it")
        else:
            yield GROUP.ok("get", "it was read back")
        step = "list"
        listed = [found for found, _ in bucket.keys(key)]
        yield GROUP.judge("list", listed == [key], f"{len(listed)} found", PERMISSIONS)
        yield _missing(bucket)
        step = "delete"
        yield _conditional_delete(bucket, key, etag or "")
    except JobError as error:
        yield GROUP.fail(step, error.detail or error.message, PERMISSIONS)
    finally:
        with suppress(JobError):
            bucket.delete(key)


def _missing(bucket: Bucket) -> Finding:
    try:
        bucket.hash(f"{PROBES}not-there-{uuid.uuid4().hex}")
    except JobError as error:
        return GROUP.judge(
            "missing",
            error.code is ErrorCode.OBJECT_NOT_FOUND,
            "a missing object is told from a forbidden one"
            if error.code is ErrorCode.OBJECT_NOT_FOUND
            else "a missing object looks like a fault of the storage",
            f"allow s3:ListBucket; {PERMISSIONS}",
        )
    return GROUP.fail("missing", "an object that nobody wrote was read", "ask who runs it")


def _conditional_delete(bucket: Bucket, key: str, etag: str) -> Finding:
    refused = not bucket.delete_if(key, '"00000000000000000000000000000000"')
    if refused:
        bucket.delete_if(key, etag)
    if bucket.exists(key):
        return GROUP.fail("delete", "the object is still there after its deletion", PERMISSIONS)
    return GROUP.judge(
        "delete",
        refused,
        "it was deleted" if refused else "it was deleted, though it should have another ETag",
        "the storage does not know If-Match for deletes: a file that is replaced while its "
        "duplicate job runs could be deleted",
    )


def _lifecycle(bucket: Bucket) -> Iterator[Finding]:
    try:
        answer = bucket.client.get_bucket_lifecycle_configuration(Bucket=bucket.name)
        rules = [rule for rule in answer["Rules"] if rule["Status"] == "Enabled"]
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "NoSuchLifecycleConfiguration":
            return  # not permitted, which the service does not need
        rules = []
    kept = [rule for rule in rules if "Expiration" in rule and OUTCOMES in str(rule)]
    yield GROUP.judge(
        "outcomes",
        bool(kept),
        f"{OUTCOMES} expires" if kept else f"{OUTCOMES} is kept for ever",
        f"add a lifecycle rule that expires {OUTCOMES} after 14 days",
    )
    aborts = any("AbortIncompleteMultipartUpload" in rule for rule in rules)
    yield GROUP.judge(
        "uploads",
        aborts,
        "incomplete uploads are removed" if aborts else "incomplete uploads stay, and cost",
        "add a lifecycle rule that aborts multipart uploads after a day",
    )
