"""The metrics as Prometheus gets them: from the node of a service that worked."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.prometheus import Samples, samples
from tests.support import World, encoded, music, receiver, service, wait_until
from waveflow_ray import __version__
from waveflow_ray.messages import AnalysisJob, HashJob, MixJob, envelope
from waveflow_ray.metrics import TABLE

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


def expected(wav_bytes: int) -> Samples:
    """What is known beforehand."""
    values: Samples = {}

    def put(value: float, name: str, **labels: str) -> None:
        values[f"waveflow_{name}", tuple(sorted(labels.items()))] = value

    put(1, "jobs_total", kind="hash", outcome="SUCCESS")
    put(1, "jobs_total", kind="analysis", outcome="SUCCESS")
    put(1, "jobs_total", kind="analysis", outcome="FAILURE")
    put(1, "jobs_total", kind="mix", outcome="SUCCESS")
    put(1, "jobs_total", kind="rejected", outcome="FAILURE")
    put(0, "jobs_total", kind="duplicate", outcome="SUCCESS")
    put(1, "failures_total", kind="analysis", code="unsupported_media_type")
    put(0, "retries_total", kind="hash", code="storage_unavailable")
    put(0, "leases_lost_total", kind="hash")
    put(1, "dead_letters_written_total", code="invalid_message")
    put(wav_bytes, "read_bytes_total", kind="hash")
    put(2.0, "audio_seconds_total", kind="analysis")
    put(2.0, "audio_seconds_total", kind="mix")
    for kind, count in {"hash": 1, "analysis": 2, "mix": 1}.items():
        put(count, "job_seconds_count", kind=kind)
        put(count, "job_seconds_bucket", kind=kind, le="+Inf")
        put(count, "stage_seconds_count", kind=kind, stage="webhook")
        put(count, "peak_memory_bytes_count", kind=kind)
        put(0, "jobs_in_hand", kind=kind, stage="running")
    for path, count in {"/hash-check": 1, "/completion": 2, "/mixing-complete": 1}.items():
        put(count, "webhooks_total", path=path, status="2xx", verdict="delivered")
    put(1, "nodes", type="head")
    put(0, "nodes", type="spot")
    put(40, "slots", size="light")
    put(0, "main_server_away")
    put(0, "oldest_job_age_seconds")
    put(0, "queue_messages", state="delayed")
    put(1, "build_info", version=__version__)
    return values


def test_what_happened_is_served_to_prometheus(world: World, tmp_path: Path) -> None:
    """A hash, an analysis, a mix, a failure and an unreadable message: every metric of the table
    is there, and the counters are right."""
    wav = encoded(music(2.0))
    world.bucket.put("metrics/a.wav", wav, "audio/wav")
    world.bucket.put("metrics/not.wav", b"no sound at all " * 50, "audio/wav")
    bodies = [
        envelope(HashJob, "h", stemId="m-1", filepath="metrics/a.wav"),
        envelope(AnalysisJob, "a", stemId="m-2", filepath="metrics/a.wav"),
        envelope(AnalysisJob, "b", stemId="m-3", filepath="metrics/not.wav"),
        envelope(MixJob, "m", stageId="m", stem_paths=["metrics/a.wav", "metrics/a.wav"]),
        "neither JSON nor anything",
    ]
    temp = Path(tempfile.mkdtemp(prefix="wf"))  # short: Ray's sockets are in it
    targets = temp / "ray" / "prom_metrics_service_discovery.json"
    before = time.time()
    wanted, found = expected(len(wav)), Samples()

    def wrong() -> dict[Any, Any]:
        found.clear()
        found.update(samples(targets))
        return {k: (v, found.get(k)) for k, v in wanted.items() if found.get(k) != pytest.approx(v)}

    with receiver() as main_server:
        env = world.env | {
            "WEBHOOK_URL": main_server.url,
            "TMPDIR": str(temp),
            "RAY_metrics_report_interval_ms": "1000",
            "DASHBOARD": "true",  # which tells Prometheus where the metrics are
        }
        with service(env, tmp_path) as running:
            for body in bodies:
                world.queue.send(body)
            main_server.wait_for(4, timeout_s=120)
            wait_until(lambda: not wrong(), 120, lambda: f"wanted, found: {wrong()}", pause_s=1.0)
            assert running.stop() == 0
    shutil.rmtree(temp)

    names = {name for name, _ in found}
    for metric in TABLE:
        exported = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        assert exported in names, metric.name
    for kind in ("hash", "analysis", "mix"):
        labels = (("kind", kind),)
        assert found["waveflow_cpu_seconds_total", labels] > 0
        assert found["waveflow_job_seconds_sum", labels] > 0
        assert found["waveflow_peak_memory_bytes_sum", labels] > 10e6
    began = found["waveflow_ingress_start_time_seconds", ()]
    assert before < began < time.time()
