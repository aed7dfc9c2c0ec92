"""This machine: scratch folder, memory, and what reads audio."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import soundfile

from waveflow_ray.audio.decode import open_audio
from waveflow_ray.audio.media import sniff
from waveflow_ray.audio.scratch import open_scratch
from waveflow_ray.doctor.findings import Finding, Group
from waveflow_ray.settings import Settings

GROUP = Group("This machine")
FORMATS = {
    "WAV": ("PCM_16", "audio/wav"),
    "FLAC": ("PCM_16", "audio/flac"),
    "OGG": ("VORBIS", "audio/ogg"),
    "MP3": ("MPEG_LAYER_III", "audio/mpeg"),
    "AIFF": ("PCM_16", "audio/aiff"),
}
RATE = 44_100
FREE_FILES = 4
"""Files of the largest size that should fit for each CPU: what is at work, and a mix's sum."""
MEMORY_PER_CPU = 2**30


def check(settings: Settings) -> Iterator[Finding]:
    """Scratch folder, memory, codecs."""
    yield from _scratch(settings)
    total, cpus = psutil.virtual_memory().total, os.cpu_count() or 1
    yield GROUP.judge(
        "memory",
        total >= MEMORY_PER_CPU * cpus,
        f"{total / 2**30:.1f} GB for {cpus} CPUs",
        "1 GB for each CPU at least; or fewer, `waveflow run --num-cpus`",
    )
    again = "install the package again, with constraints.txt"
    if (named := sniff(b"words " * 50)) == "text/plain":
        yield GROUP.ok("libmagic", "tells what is no audio")
    else:
        yield GROUP.fail("libmagic", f"takes a text for {named}", again)
    if broken := {name: why for name in FORMATS if (why := _codec(name))}:
        found = "; ".join(f"{name}: {why}" for name, why in broken.items())
        yield GROUP.fail("codecs", found, again)
    else:
        version = soundfile.__libsndfile_version__
        yield GROUP.ok("codecs", f"{', '.join(FORMATS)} are read (libsndfile {version})")


def _scratch(settings: Settings) -> Iterator[Finding]:
    folder = settings.scratch_dir
    try:
        fd = open_scratch(folder)
        os.write(fd, b"probe")
        os.close(fd)
    except OSError as error:
        yield GROUP.fail("scratch", f"{folder}: {error}", "make it writable, or set SCRATCH_DIR")
        return
    nameless = _has_nameless_files(folder)
    kind = _file_system(folder)
    if kind in ("tmpfs", "ramfs"):
        mend = "set SCRATCH_DIR to a folder on a disk"
        yield GROUP.warn("scratch", f"{folder} is on {kind}, which is memory", mend)
    else:
        yield GROUP.judge(
            "scratch",
            nameless,
            f"{folder} is writable" + ("" if nameless else ", but has no files without names"),
            "a killed process may leave a file there, until the next sweep: take ext4 or xfs",
        )
    free = shutil.disk_usage(folder).free
    wanted = FREE_FILES * (os.cpu_count() or 1) * settings.max_file_size_bytes
    yield GROUP.judge(
        "disk",
        free >= wanted,
        f"{free / 2**30:.1f} GB free",
        f"{wanted / 2**30:.1f} GB are wanted: {FREE_FILES} files of MAX_FILE_SIZE_MB for each CPU",
    )


def _has_nameless_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return error.errno not in (errno.EOPNOTSUPP, errno.EISDIR)
    return True


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    place = folder.resolve()
    return next((mounts[path] for path in (place, *place.parents) if path in mounts), "")


def _codec(name: str) -> str:
    """Why a second of tone does not come through; empty if it does."""
    encoding, mime = FORMATS[name]
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    with tempfile.NamedTemporaryFile() as file:
        try:
            soundfile.write(file, tone, RATE, encoding, format=name)
            file.seek(0)
            if (detected := sniff(file.read())) != mime:
                return f"is taken for {detected}"
            with open_audio(Path(file.name)) as reader:
                loudest = max(float(np.abs(block).max()) for block in reader.blocks())
                frames = reader.frames_read
        except Exception as error:  # whatever it is, this format cannot be used
            return f"{type(error).__name__}: {error}"
    full = 32768 if loudest > 2 else 1
    if not 0.4 < loudest / full < 0.6 or not RATE <= frames <= RATE * 1.1:
        return f"{frames} frames with a peak of {loudest / full:.2f} came of {RATE} with 0.5"
    return ""
