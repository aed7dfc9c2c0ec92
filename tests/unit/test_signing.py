"""The signature of requests: as in Amazon's document, and as botocore makes it."""

from __future__ import annotations

from unittest.mock import patch

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import get_current_datetime
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from waveflow_ray.aws.signing import EMPTY_SHA256, Keys, encoded_path, signed

KEYS = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
WHEN = "20130524T000000Z"
HOST = "examplebucket.s3.amazonaws.com"


def test_the_example_of_the_document() -> None:
    """GET of a range: Amazon's own example of "Authenticating Requests (Signature Version 4)"."""
    headers = signed(
        "GET", "/test.txt", {"host": HOST, "range": "bytes=0-9"}, KEYS, "us-east-1", WHEN
    )
    assert headers["x-amz-content-sha256"] == EMPTY_SHA256
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


@given(
    key=st.text(min_size=1, max_size=40).filter(lambda key: key.isprintable()),
    token=st.none() | st.just("FwoGZXIvYXdzEBYaD"),
    body=st.binary(max_size=50),
)
def test_it_is_what_botocore_signs(key: str, token: str | None, body: bytes) -> None:
    """The same signature for any key, body and kind of credentials."""
    path = encoded_path(key)
    plain = {"host": HOST, "content-type": "application/json", "if-none-match": "*"}
    keys = Keys(KEYS.access_key, KEYS.secret_key, token)
    ours = signed("PUT", path, plain, keys, "eu-west-3", WHEN, body)
    request = AWSRequest("PUT", f"http://{HOST}{path}", data=body, headers=plain)
    request.context["payload_signing_enabled"] = True
    when = get_current_datetime().replace(2013, 5, 24, 0, 0, 0, 0)
    with patch("botocore.auth.get_current_datetime", lambda: when):
        S3SigV4Auth(
            Credentials(keys.access_key, keys.secret_key, token), "s3", "eu-west-3"
        ).add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]


def test_it_is_what_botocore_signs_for_sqs() -> None:
    """The hash of the body is a header more, which botocore signs as any other."""
    plain = {"host": HOST, "content-type": "application/x-amz-json-1.0", "x-amz-target": "X.Y"}
    ours = signed("POST", "/", plain, KEYS, "eu-west-3", WHEN, b"{}", "sqs")
    more = {"x-amz-content-sha256": ours["x-amz-content-sha256"]}
    request = AWSRequest("POST", f"https://{HOST}/", data=b"{}", headers=plain | more)
    when = get_current_datetime().replace(2013, 5, 24, 0, 0, 0, 0)
    with patch("botocore.auth.get_current_datetime", lambda: when):
        credentials = Credentials(KEYS.access_key, KEYS.secret_key)
        SigV4Auth(credentials, "sqs", "eu-west-3").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]
