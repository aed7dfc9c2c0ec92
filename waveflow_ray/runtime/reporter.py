"""The actors that post webhooks. Imports little: they need neither boto3 nor numpy."""

from __future__ import annotations

import gc
import socket
from collections.abc import Sequence

from waveflow_ray.logs import configure_logging
from waveflow_ray.outcomes import Webhook
from waveflow_ray.runtime.outbox import Outbox
from waveflow_ray.settings import SECRETS, Secrets, Settings, signing_keys
from waveflow_ray.webhooks import Answer, Verdict


class ReporterActor:
    """Posts webhooks. A subject is always at the same reporter.

    Args:
        settings: without secrets: what Ray is given, it keeps. They come from the environment of
            the actor's own process.
        fingerprint: of the secrets with which the service was started.
    """

    def __init__(self, settings: Settings, fingerprint: str) -> None:
        from waveflow_ray.posting import Poster  # with aiohttp, which the ingress does without

        configure_logging(settings.log_level, settings.log_format)
        secrets = Secrets(_env_file=None)  # a `.env` where Ray runs may be for something else
        self._outbox = Outbox(self._post)
        self._trouble = "" if secrets.fingerprint == fingerprint else _other_secrets()
        secret, token = secrets.webhook_secret, secrets.webhook_token
        self._poster = Poster(
            settings.webhook_url,
            settings.webhook_timeout_s,
            keys=signing_keys(secret.get_secret_value()) if secret else (),
            token=token.get_secret_value() if token else None,
        )
        gc.freeze()  # what is loaded stays; looking through it was a tenth of this process's time

    async def trouble(self) -> str:
        """Why nothing can be posted, if so."""
        return self._trouble

    async def post(self, webhook: Webhook) -> Answer:
        """See `Outbox.one`."""
        return await self._outbox.one(webhook)

    async def post_some(self, webhooks: Sequence[Webhook]) -> list[Answer | None]:
        """See `Outbox.some`."""
        return await self._outbox.some(webhooks)

    async def _post(self, webhook: Webhook) -> Answer:
        if self._trouble:
            return Answer(Verdict.AWAY, self._trouble)
        return await self._poster.post(webhook)


def _other_secrets() -> str:
    return (
        f"{' or '.join(SECRETS)}: not the same on the Ray node {socket.gethostname()} as where the "
        "service was started; set them in the environment of `ray start` there"
    )
