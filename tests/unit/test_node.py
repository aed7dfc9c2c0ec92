"""A machine of a cluster: the spot notice, processes that belong together, releases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support import PlainHandler, serving, wait_until
from waveflow_ray.node.keeper import Place, end
from waveflow_ray.node.releases import ReleaseError, unmet, unpack, use
from waveflow_ray.node.sessions import end_session, members, start_session
from waveflow_ray.node.spot import Metadata


class Imds:
    """An instance metadata service, version 2. `notice` is what it knows of the end."""

    def __init__(self) -> None:
        self.notice: dict[str, str] | str | None = None
        self.token = "t-0"
        self.tokens_made = 0
        self.url = ""


@contextmanager
def imds() -> Iterator[Imds]:
    state = Imds()

    class Handler(PlainHandler, BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            assert self.path == "/latest/api/token"
            assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
            state.tokens_made += 1
            self.answer(200, state.token)

        def do_GET(self) -> None:
            assert self.path == "/latest/meta-data/spot/instance-action"
            if self.headers["X-aws-ec2-metadata-token"] != state.token:
                self.answer(401, "")
            elif state.notice is None:
                self.answer(404, "")
            else:
                raw = isinstance(state.notice, str)
                self.answer(200, state.notice if raw else json.dumps(state.notice))

    with serving(Handler) as state.url:
        yield state


def test_a_spot_notice_is_read() -> None:
    """No notice, then one: the seconds that are left; the token is asked for once."""
    with imds() as service:
        metadata = Metadata(service.url)
        assert metadata.seconds_left() is None
        at = datetime.now(UTC) + timedelta(seconds=120)
        service.notice = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        left_s = metadata.seconds_left()
        assert left_s is not None
        assert 110 < left_s <= 120
        service.notice["time"] = "2020-01-01T00:00:00Z"
        assert metadata.seconds_left() == 0.0
        assert service.tokens_made == 1


def test_a_token_that_is_not_known_any_more_is_renewed() -> None:
    """The look after the refused one succeeds."""
    with imds() as service:
        metadata = Metadata(service.url)
        metadata.seconds_left()
        service.token = "t-1"
        service.notice = {"action": "terminate", "time": "2020-01-01T00:00:00Z"}
        assert [metadata.seconds_left(), metadata.seconds_left()] == [None, 0.0]


@pytest.mark.parametrize("notice", ["no json", "[]", '{"action": "stop"}', '{"time": 3}'])
def test_what_cannot_be_read_is_no_notice(notice: str) -> None:
    """A node is not drained for an answer that nobody understands."""
    with imds() as service:
        service.notice = notice
        assert Metadata(service.url).seconds_left() is None


def test_without_metadata_there_is_no_notice() -> None:
    """On a machine that is no instance."""
    assert Metadata("http://127.0.0.1:9").seconds_left() is None


FAMILY = """
import subprocess, sys
subprocess.Popen(["sleep", "100"])
subprocess.Popen(["sleep", "100"], process_group=0)
print("born", flush=True)
if sys.argv[1] == "stays":
    import time; time.sleep(100)
"""


@pytest.mark.parametrize("leader", ["stays", "leaves"])
def test_a_session_is_ended_with_all_its_processes(leader: str, tmp_path: Path) -> None:
    """Also those whose parent is gone, and in other process groups; nobody else."""
    bystander = subprocess.Popen(["sleep", "100"])
    log = tmp_path / "log"
    process = start_session([sys.executable, "-c", FAMILY, leader], log)
    session = process.pid
    wait_until(lambda: "born" in log.read_text(), 30)
    wait_until(lambda: len(members(session)) == (3 if leader == "stays" else 2), 30)
    end_session(session)
    assert members(session) == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    process.wait()


@pytest.mark.parametrize("text", [None, "", "x y z", "1 1", "1 1 another-boot/pid:[1]"])
def test_pids_of_another_life_of_the_machine_are_left_alone(
    text: str | None, tmp_path: Path
) -> None:
    """After a restart the same numbers are somebody else's."""
    place = Place(tmp_path)
    if text is not None:
        place.pids.write_text(text)
    assert end(place) is False


def wheel(folder: Path, version: str, *requires: str) -> Path:
    """A wheel with one module and these requirements."""
    path = folder / f"waveflow_ray-{version}-py3-none-any.whl"
    info = f"waveflow_ray-{version}.dist-info"
    lines = [f"Requires-Dist: {requirement}\n" for requirement in requires]
    metadata = f"Metadata-Version: 2.1\nName: waveflow-ray\nVersion: {version}\n{''.join(lines)}"
    tags = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("waveflow_ray/__init__.py", f'__version__ = "{version}"\n')
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_release_is_unpacked_once_and_named_by_its_content(tmp_path: Path) -> None:
    """Two wheels of one version are two releases."""
    first = unpack(wheel(tmp_path, "1.0", "numpy>=1"), tmp_path / "releases")
    assert (first / "waveflow_ray" / "__init__.py").read_text() == '__version__ = "1.0"\n'
    assert unpack(tmp_path / "waveflow_ray-1.0-py3-none-any.whl", first.parent) == first
    second = unpack(wheel(tmp_path, "1.0", "numpy>=1", "pytest"), first.parent)
    assert second != first


def test_a_release_that_needs_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """It names all of it; what only extras need does not count."""
    new = wheel(
        tmp_path, "2.0", "numpy>=999", "no-such-package", "nor-this; extra == 'dev'", "ray[default]"
    )
    assert unmet(new) == ["numpy>=999", "no-such-package"]
    with pytest.raises(ReleaseError, match=r"numpy>=999, no-such-package.*--image"):
        unpack(new, tmp_path / "releases")
    assert not (tmp_path / "releases").exists()


def test_a_file_that_is_no_wheel_is_named(tmp_path: Path) -> None:
    """Not a traceback of zipfile's."""
    path = tmp_path / "words.whl"
    path.write_text("words")
    with pytest.raises(ReleaseError, match=r"words\.whl cannot be read"):
        unpack(path, tmp_path)


def test_the_release_in_use_is_kept_and_old_ones_go(tmp_path: Path) -> None:
    """Three of them stay: the way back is short, and the disk does not fill."""
    link = tmp_path / "current"
    for number in range(5):
        release = tmp_path / "releases" / str(number)
        release.mkdir(parents=True)
        use(release, link)
        assert link.resolve() == release
        os.utime(release, (number, number))  # in a test they would be the same
    assert sorted(path.name for path in link.resolve().parent.iterdir()) == ["2", "3", "4"]
