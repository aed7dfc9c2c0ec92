"""`waveflow doctor`: is everything there that the service needs, and if not, what mends it.

Every module here looks at one group of things and yields findings. A check that raises becomes a
finding itself, so that the others still run.
"""

from __future__ import annotations

from collections.abc import Iterator

from waveflow_ray.doctor.findings import Finding
from waveflow_ray.settings import Settings


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks, one after the other."""
    from waveflow_ray.doctor import bucket, cluster, credentials, machine, queue, webhook

    for module in (credentials, bucket, queue, webhook, cluster, machine):
        group = module.GROUP
        try:
            yield from module.check(settings)
        except Exception as error:  # whatever it is, the other checks are worth having
            yield group.fail("check", f"{type(error).__name__}: {error}"[:500])
