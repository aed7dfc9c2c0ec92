"""Ray: the cluster, if there is one, and who may talk to it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import ray
import requests

from waveflow_ray.doctor.findings import Finding, Group
from waveflow_ray.jobs.maintenance import node_summary
from waveflow_ray.runtime import app
from waveflow_ray.runtime.nodes import cluster_nodes
from waveflow_ray.settings import Settings

GROUP = Group("Ray")
TIMEOUT_S = 5.0


def check(settings: Settings) -> Iterator[Finding]:
    """Versions, token, dashboard, and whether the service runs there."""
    versions = f"Ray {ray.__version__}, Python {platform.python_version()}"
    yield GROUP.ok("version", versions)
    try:
        dashboard = app.connect(settings, may_start=False)
    except app.ServiceError as error:
        if settings.ray_address:
            mend = "correct RAY_ADDRESS, or start the cluster"
            yield GROUP.fail("cluster", str(error), mend)
        else:
            yield GROUP.ok("cluster", "none on this machine; `waveflow run` starts one")
        return
    except Exception as error:  # other versions of Ray or Python there
        mend = f"install on all nodes the versions of this one ({versions})"
        yield GROUP.fail("cluster", f"{type(error).__name__}: {error}"[:500], mend)
        return
    try:
        yield GROUP.ok("cluster", node_summary(cluster_nodes()))
        if dashboard:
            yield _token(dashboard)
            yield _dashboard(dashboard)
        yield _service()
    finally:
        ray.shutdown()


def _token(url: str) -> Finding:
    """Whether a stranger is turned away."""
    try:
        status = requests.get(f"{url}/api/version", timeout=TIMEOUT_S).status_code
    except requests.RequestException as error:
        return GROUP.warn("token", f"{url}: {error}", "is the dashboard's process alive?")
    if status in (401, 403):
        return GROUP.ok("token", "the cluster asks for it")
    found = f"the dashboard answers {status} without it: whoever reaches it runs code here"
    return GROUP.warn("token", found, "start Ray with RAY_AUTH_MODE=token")


def _dashboard(url: str) -> Finding:
    host = urlsplit(url).hostname or ""
    near = host == "localhost" or ip_address(host).is_loopback
    mend = "start Ray with --dashboard-host 127.0.0.1, and use `ray dashboard` to reach it"
    return GROUP.judge("dashboard", near, url, mend)


def _service() -> Finding:
    if app.runs():
        return GROUP.ok("service", "runs")
    return GROUP.warn("service", "does not run on this cluster", "`waveflow start`")
