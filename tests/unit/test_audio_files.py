"""Hashes and temporary files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from waveflow_ray.audio.hashing import BUFFER_BYTES, hash_file
from waveflow_ray.audio.scratch import open_scratch, sweep

DAY_S = 86_400.0


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, 2 * BUFFER_BYTES + 17])
def test_hash_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    """SHA-256 in lower-case hex and the size, around the size of the buffer too."""
    content = bytes(i * 31 & 255 for i in range(1024)) * (size // 1024 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert hash_file(tmp_path / "a") == (hashlib.sha256(content[:size]).hexdigest(), size)


def test_hash_of_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    """There is no hash of nothing."""
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "absent")


@pytest.mark.parametrize("has_tmpfile", [True, False])
def test_scratch_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tmpfile: bool
) -> None:
    """Bytes written can be read, yet the folder is empty, with or without O_TMPFILE."""
    if not has_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE")
    folder = tmp_path / "new" / "scratch"
    fd = open_scratch(folder)
    try:
        os.write(fd, b"sound")
        assert os.pread(fd, 99, 0) == b"sound"
        assert list(folder.iterdir()) == []
        assert not os.get_inheritable(fd)
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.close(fd)


def aged(path: Path, now: float, age_s: float) -> Path:
    path.write_bytes(b"x")
    os.utime(path, (now - age_s, now - age_s))
    return path


def test_sweep_removes_only_old_plain_files_here(tmp_path: Path) -> None:
    """Young files, folders, what is in them, and links stay; so does what links point to."""
    now = 1_000_000_000.0
    folder, outside = tmp_path / "scratch", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    old = [aged(folder / name, now, 2 * DAY_S) for name in ("a", "b")]
    kept = [
        aged(folder / "young", now, 60.0),
        aged(folder / "sub" / "old", now, 2 * DAY_S),
        aged(outside / "old", now, 2 * DAY_S),
    ]
    (folder / "link").symlink_to(outside / "old")
    (folder / "link_to_folder").symlink_to(outside)
    assert sweep(folder, DAY_S, now) == old
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)
    assert (folder / "link").is_symlink()
    assert sweep(folder, DAY_S, now) == []


def test_sweep_does_not_follow_a_link_in_place_of_the_folder(tmp_path: Path) -> None:
    """A scratch folder that is a link to another folder is left alone."""
    (tmp_path / "precious").mkdir()
    file = aged(tmp_path / "precious" / "a", 1e9, 2 * DAY_S)
    (tmp_path / "scratch").symlink_to(tmp_path / "precious")
    assert sweep(tmp_path / "scratch", DAY_S, 1e9) == []
    assert file.exists()


def test_sweep_of_an_absent_folder_is_nothing(tmp_path: Path) -> None:
    """A node that never had work has nothing to clean."""
    assert sweep(tmp_path / "absent", DAY_S) == []
