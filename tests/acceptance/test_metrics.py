"""The metrics as Prometheus gets them: from the node of a service that worked."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.prometheus import Samples, samples
from tests.support import World, encoded, music, receiver, service, wait_until
from waveflow_ray import __version__
from waveflow_ray.messages import AnalysisJob, HashJob, MixJob, envelope
from waveflow_ray.metrics import TABLE

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


def of(found: Samples, name: str, **labels: str) -> float:
    """One value; NaN, which is equal to nothing, where there is none."""
    return found.get((f"waveflow_{name}", tuple(sorted(labels.items()))), float("nan"))


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
    found: Samples = {}

    def complete() -> bool:
        found.clear()
        found.update(samples(targets))
        jobs = [value for (name, _), value in found.items() if name == "waveflow_jobs_total"]
        return sum(jobs) >= len(bodies) and of(found, "dead_letters") >= 0

    with receiver() as main_server:
        env = world.env | {
            "WEBHOOK_URL": main_server.url,
            "TMPDIR": str(temp),
            "RAY_metrics_report_interval_ms": "1000",
        }
        with service(env, tmp_path) as running:
            for body in bodies:
                world.queue.send(body)
            main_server.wait_for(4)
            wait_until(complete, 60, lambda: f"{found}\n{running.output()}", pause_s=1.0)
            assert running.stop() == 0
    shutil.rmtree(temp)

    names = {name for name, _ in found}
    for metric in TABLE:
        exported = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
        assert exported in names, metric.name
    assert of(found, "jobs_total", kind="hash", outcome="SUCCESS") == 1
    assert of(found, "jobs_total", kind="analysis", outcome="SUCCESS") == 1
    assert of(found, "jobs_total", kind="analysis", outcome="FAILURE") == 1
    assert of(found, "jobs_total", kind="mix", outcome="SUCCESS") == 1
    assert of(found, "jobs_total", kind="rejected", outcome="FAILURE") == 1
    assert of(found, "failures_total", kind="analysis", code="unsupported_media_type") == 1
    assert of(found, "retries_total", kind="hash", code="storage_unavailable") == 0
    assert of(found, "leases_lost_total", kind="hash") == 0
    assert of(found, "dead_letters_written_total", code="invalid_message") == 1
    assert of(found, "dead_letters") in (0, 1)  # it is looked at once a minute
    assert of(found, "read_bytes_total", kind="hash") == len(wav)
    assert of(found, "audio_seconds_total", kind="analysis") == pytest.approx(2.0)
    assert of(found, "audio_seconds_total", kind="mix") == pytest.approx(2.0)
    assert of(found, "cpu_seconds_total", kind="mix") > 0
    for kind, count in {"hash": 1, "analysis": 2, "mix": 1}.items():
        assert of(found, "job_seconds_count", kind=kind) == count
        assert of(found, "job_seconds_bucket", kind=kind, le="+Inf") == count
        assert of(found, "stage_seconds_count", kind=kind, stage="webhook") == count
        assert of(found, "peak_memory_bytes_sum", kind=kind) > count * 10e6
    for path, count in {"/hash-check": 1, "/completion": 2, "/mixing-complete": 1}.items():
        labels = {"path": path, "status": "2xx", "verdict": "delivered"}
        assert of(found, "webhooks_total", **labels) == count
    assert of(found, "nodes", type="head") == 1
    assert of(found, "slots", size="light") == 4
    assert of(found, "main_server_away") == 0
    assert of(found, "jobs_in_hand", kind="mix", stage="running") == 0
    assert of(found, "build_info", version=__version__) == 1
