"""The notice that AWS takes a spot instance back, from the instance's own metadata.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html says:
asked every 5 s, it comes two minutes ahead, as a rule.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import requests

ENDPOINT = "http://169.254.169.254"
TIMEOUT_S = 2.0
TOKEN_LIFE_S = 21_600


class Metadata:
    """Asks the instance metadata service (IMDSv2).

    Args:
        endpoint: where it is, without a path.
    """

    def __init__(self, endpoint: str = ENDPOINT) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy knows nothing of this instance
        self._token = ""
        self._token_until = 0.0

    def seconds_left(self) -> float | None:
        """Until this instance is taken away; None if nothing is known, or nobody answers."""
        try:
            answer = self._get("/latest/meta-data/spot/instance-action")
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            action = answer.json()
            at = datetime.strptime(action["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return None
        return max(0.0, (at - datetime.now(UTC)).total_seconds())

    def _get(self, path: str) -> requests.Response:
        answer = self._http.get(
            self._endpoint + path,
            headers={"X-aws-ec2-metadata-token": self._fresh_token()},
            timeout=TIMEOUT_S,
        )
        if answer.status_code == 401:  # the token is not known any more: another one next time
            self._token_until = 0.0
        return answer

    def _fresh_token(self) -> str:
        if time.monotonic() >= self._token_until:
            answer = self._http.put(
                self._endpoint + "/latest/api/token",
                headers={"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)},
                timeout=TIMEOUT_S,
            )
            answer.raise_for_status()
            self._token = answer.text
            self._token_until = time.monotonic() + TOKEN_LIFE_S / 2
        return self._token
