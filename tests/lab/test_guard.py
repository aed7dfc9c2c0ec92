"""The lab leaves nothing on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.lab import REPOSITORY, why_not
from tests.lab.limits import MOUNTED
from tests.support import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

HOLDER = """
import time
from tests.lab.lab import Lab
with Lab("ap-northeast-2") as lab:
    ec2 = lab.client("ec2")
    ec2.create_key_pair(KeyName="key")
    image = ec2.register_image(Name="lab")["ImageId"]
    ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, KeyName="key")
    (instance,) = lab.instances()
    host = lab.folder / "nodes" / instance["InstanceId"] / "pid"
    while not host.exists():
        time.sleep(0.1)
    print(lab.folder, flush=True)
    time.sleep(3600)
"""


def test_the_lab_ends_with_the_process_that_opened_it() -> None:
    """Killed with -9, which it cannot notice: no process, cgroup, mount or file is left."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        assert folder.is_dir()
        init = Path("/proc", (folder / "out/pid").read_text())
        assert init.exists()
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    wait_until(lambda: not folder.exists(), 60, lambda: f"{folder} is still there")
    assert not init.exists()
    assert list(MOUNTED.rglob(folder.name)) == []
    assert folder.name not in Path("/proc/self/mounts").read_text()
