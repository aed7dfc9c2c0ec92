"""Two of the heaviest jobs at once on a worker of 4 GB, for ten minutes: `make lab-slow`."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.lab.cluster import MAX_WORKERS, Account, deploy, open_lab, project_config, write
from tests.lab.conftest import TIMES
from tests.lab.lab import GATEWAY, why_not
from tests.support import receiver, wait_until
from waveflow_ray.messages import MixJob, envelope

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(2400)]

MINUTES = 10
AT_ONCE = 2
MEGABYTE = 2**20
STEMS = {
    # As large as MAX_FILE_SIZE_MB lets through; what resamples and what decodes from the start.
    "wav-16.wav": ("WAV", "PCM_16", 44_100, 580.0),
    "wav-24-96k.wav": ("WAV", "PCM_24", 96_000, 175.0),
    "flac-24-96k.flac": ("FLAC", "PCM_24", 96_000, 160.0),
    "mp3.mp3": ("MP3", "MPEG_LAYER_III", 44_100, 600.0),
}
TIMES_EACH = 4
"""How often a mix has each of them: 16 stems."""
SEEN = """
cd /sys/fs/cgroup; test -d memory && cd memory
cat memory.max_usage_in_bytes memory.peak 2> /dev/null
cat memory.oom_control memory.events 2> /dev/null | grep -w oom_kill
"""


def noise(kind: str, subtype: str, rate: int, seconds: float) -> bytes:
    """A stereo file that no codec makes small."""
    rng = np.random.default_rng(rate)
    buffer = io.BytesIO()
    with sf.SoundFile(buffer, "w", rate, 2, subtype, format=kind) as file:
        for _ in range(int(seconds)):
            file.write(rng.standard_normal((rate, 2)) * 0.1)
    return buffer.getvalue()


def upload(account: Account) -> list[str]:
    """The stems of every mix."""
    for name, how in STEMS.items():
        content = noise(*how)
        assert len(content) <= 100 * MEGABYTE
        account.bucket.put(f"heavy/{name}", content, "audio/wav")
    return [f"heavy/{name}" for name in STEMS for _ in range(TIMES_EACH)]


def only_one_worker(config: dict[str, Any]) -> dict[str, Any]:
    """All tasks are on it."""
    config["available_node_types"]["head"]["resources"]["CPU"] = 0
    return config


def test_two_of_the_heaviest_jobs_fit_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is killed for memory, neither by the kernel nor by Ray, and every mix is made."""
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.setattr("tests.lab.cluster.MAX_WORKERS", 1)
    assert MAX_WORKERS > 1
    config = only_one_worker(project_config())
    lab = open_lab(config)
    with lab, receiver(host=GATEWAY) as main_server:
        account = deploy(lab)
        stems = upload(account)
        settings = account.settings | {"WEBHOOK_URL": main_server.url, "VISIBILITY_TIMEOUT_S": "90"}
        path = write(lab, config, settings)
        lab.operator(f"ray up --no-config-cache -y {path}", 600)
        until = time.monotonic() + 60 * MINUTES
        sent = 0
        while time.monotonic() < until:
            while sent < len(main_server.accepted) + AT_ONCE:
                body = envelope(MixJob, f"heavy-{sent}", stageId=f"stage-{sent}", stem_paths=stems)
                account.queue.send(body)
                sent += 1
            time.sleep(1)
        wait_until(lambda: len(main_server.accepted) == sent, 900, main_server.summary)
        assert {got.payload["status"] for got in main_server.accepted} == {"SUCCESS"}
        (worker,) = [
            instance["InstanceId"]
            for instance in lab.instances()
            if {"Key": "ray-node-type", "Value": "worker"} in instance["Tags"]
        ]
        peak, kills = lab.node(worker, SEEN, user="root").split("\n")[:2]
        TIMES.append(("heaviest mixes in 10 minutes", str(sent)))
        TIMES.append(("most memory of the node, MB", f"{int(peak) / MEGABYTE:.0f}"))
        assert kills.split() == ["oom_kill", "0"]
        log = lab.operator(f"cluster/waveflow --config {path} status --json")
        assert '"retried"' not in log
