"""Signature Version 4 of a request, as S3 wants it and SQS takes it. Pure: times and credentials
come from outside.

botocore signs as well, but what it does around that costs ten times the signature.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Keys:
    """Credentials at one moment."""

    access_key: str
    secret_key: str
    token: str | None = None


def encoded_path(key: str) -> str:
    """The path of an object, as it is sent and signed."""
    return "/" + quote(key, safe="/-._~")


def signed(
    method: str,
    path: str,
    headers: Mapping[str, str],
    keys: Keys,
    region: str,
    when: str,
    body: bytes = b"",
    service: str = "s3",
) -> dict[str, str]:
    """The headers to send: those given, which are signed all, and those of the signature.

    For requests without a query.

    Args:
        path: percent-encoded, as it is sent.
        headers: with ``host``; names in lower case.
        when: UTC as ``20261125T101500Z``.
    """
    digest = hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
    all_headers = {**headers, "x-amz-content-sha256": digest, "x-amz-date": when}
    if keys.token is not None:
        all_headers["x-amz-security-token"] = keys.token
    names = sorted(all_headers)
    lines = "".join(f"{name}:{all_headers[name].strip()}\n" for name in names)
    signed_names = ";".join(names)
    request = f"{method}\n{path}\n\n{lines}\n{signed_names}\n{digest}"
    scope = f"{when[:8]}/{region}/{service}/aws4_request"
    summary = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{summary}"
    key = _signing_key(keys.secret_key, when[:8], region, service)
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    all_headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, "
        f"SignedHeaders={signed_names}, Signature={signature}"
    )
    return all_headers


@lru_cache(maxsize=8)
def _signing_key(secret_key: str, day: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
