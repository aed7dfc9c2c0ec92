"""The main server, which is only looked at: no event ever comes from the doctor."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import requests

from waveflow_ray.doctor.findings import Finding, Group
from waveflow_ray.settings import Settings, signing_keys
from waveflow_ray.webhooks import signature

GROUP = Group("Webhook")
TIMEOUT_S = 5.0


def check(settings: Settings) -> Iterator[Finding]:
    """That something answers at WEBHOOK_URL; the secret."""
    yield _answer(settings.webhook_url)
    url = urlsplit(settings.webhook_url)
    if url.scheme == "http" and not _is_near(url.hostname or ""):
        mend = "use https, or a network of your own"
        yield GROUP.warn("TLS", "webhooks go over http, readable on the way", mend)
    if settings.webhook_secret is None:
        mend = "set WEBHOOK_SECRET, so that the server can tell that they come from here"
        yield GROUP.warn("signature", "webhooks are not signed", mend)
    else:
        yield _round_trip(signing_keys(settings.webhook_secret.get_secret_value()))


def _answer(url: str) -> Finding:
    try:
        answer = requests.get(url, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.exceptions.SSLError as error:
        return GROUP.fail("server", f"{url}: {error}", "mend its certificate")
    except requests.RequestException as error:
        mend = "start it, or correct WEBHOOK_URL; security groups and DNS may be in the way"
        return GROUP.fail("server", f"{url}: {type(error).__name__}: {_cause(error)}", mend)
    found = f"{url} answers ({answer.status_code})"
    if answer.is_redirect:
        place = answer.headers.get("Location", "")
        mend = f"redirects are not followed; should WEBHOOK_URL begin with {place[:100]}?"
        return GROUP.warn("server", found, mend)
    # Without a page at this address, 404 is what a server answers that is well.
    mend = "webhooks wait while it answers so"
    return GROUP.judge("server", answer.status_code < 500, found, mend)


def _round_trip(keys: list[bytes]) -> Finding:
    """Sign, and verify as a receiver with one of the secrets does."""
    sent = ("msg_doctor", str(int(time.time())))
    body = b'{"of":"waveflow doctor"}'
    signatures = signature(keys, *sent, body).split()
    content = ".".join(sent).encode() + b"." + body
    good = all(
        any(
            hmac.compare_digest(base64.b64decode(one.removeprefix("v1,")), digest)
            for one in signatures
        )
        for digest in (hmac.digest(key, content, "sha256") for key in keys)
    )
    if not good:
        return GROUP.fail("signature", "a signature could not be verified", "report this as a bug")
    secrets = "one secret" if len(keys) == 1 else f"{len(keys)} secrets, while they are rotated"
    return GROUP.ok("signature", f"webhooks are signed, with {secrets}")


def _cause(error: BaseException) -> BaseException:
    """What `requests` wraps twice."""
    inner = error.args[0] if error.args else None
    inner = getattr(inner, "reason", inner)
    return inner if isinstance(inner, BaseException) else error


def _is_near(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal"))
    return address.is_private
