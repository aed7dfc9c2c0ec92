"""Analysis of local files, beside librosa, audiowaveform, ffmpeg, sox and decoders of PyPI."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks import inputs
from benchmarks.timing import Comparison, Figure, Report, command, compare, seconds, version_of
from waveflow_ray.audio.decode import NO_OTHERS, open_audio
from waveflow_ray.audio.pcmstream import PcmStream
from waveflow_ray.audio.peaks import waveform_of
from waveflow_ray.aws.s3 import CHUNK_BYTES

PEAKS = 4000
SONG_S = 240
LONG_S = 3600
FRAMES = 65_536
WAVEFLOW = str(Path(sys.executable).with_name("waveflow"))
OF_LIBRARIES = 1.15
MOST_MB = 64.0

MEMORY = """
import re, sys
from pathlib import Path
from benchmarks.audio import analysis

def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

for _ in range(3):
    analysis(Path(sys.argv[1]))
idle = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
analysis(Path(sys.argv[2]))
print(status("VmHWM") - idle)
"""


def analysis(path: Path) -> None:
    """Ours: SHA-256 and waveform of what comes in chunks, as `jobs.analysis` has them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        chunk = file.read(CHUNK_BYTES)
        stream = PcmStream.of(chunk, path.stat().st_size, NO_OTHERS, PEAKS)
        while chunk:
            digest.update(chunk)
            if stream is not None:
                stream.add(chunk)
            chunk = file.read(CHUNK_BYTES)
    digest.hexdigest()
    if stream is not None:
        stream.waveform()
    else:
        with open_audio(path) as reader:
            waveform_of(reader, PEAKS)


def sha256(path: Path) -> None:
    """hashlib alone."""
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256").hexdigest()


def librosa_way(path: Path) -> None:
    """As tutorials do it, and as the Celery worker did: load, then loop."""
    import librosa
    import numpy as np

    hashlib.sha256(path.read_bytes()).hexdigest()
    samples, _ = librosa.load(path, sr=None, mono=True)
    size = len(samples) // PEAKS
    peaks = [float(np.max(np.abs(samples[i * size : (i + 1) * size]))) for i in range(PEAKS)]
    top = max(peaks) or 1.0
    [round(peak / top, 4) for peak in peaks]


def by_soundfile(path: Path, dtype: str) -> None:
    """libsndfile, in blocks."""
    import numpy as np
    import soundfile

    with soundfile.SoundFile(path) as file:
        buffer = np.empty((FRAMES, file.channels), dtype)
        while len(file.read(out=buffer)):
            pass


def by_pyav(path: Path) -> None:
    """ffmpeg's libraries, frame by frame."""
    import av

    with av.open(str(path)) as container:
        for _ in container.decode(audio=0):
            pass


def by_miniaudio(path: Path) -> None:
    """dr_libs and stb_vorbis, in their own sample format."""
    import miniaudio

    read = {
        ".flac": miniaudio.flac_read_file_s16,
        ".mp3": miniaudio.mp3_read_file_s16,
        ".ogg": miniaudio.vorbis_read_file,
    }
    read[path.suffix](str(path))


def decoders() -> dict[str, Callable[[Path], None]]:
    """What pip can install, by name and version."""
    found: dict[str, Callable[[Path], None]] = {
        f"soundfile {version('soundfile')}, float32": lambda path: by_soundfile(path, "float32"),
        f"soundfile {version('soundfile')}, int16": lambda path: by_soundfile(path, "int16"),
        f"miniaudio {version('miniaudio')}": by_miniaudio,
    }
    if importlib.util.find_spec("av"):
        found[f"PyAV {version('av')}"] = by_pyav
    return found


def beside_fastest(name: str, path: Path, runs: int) -> Comparison:
    """Ours beside the decoder that turns out to be the fastest, all in turn."""
    rivals = decoders()
    analysis(path)
    for rival in rivals.values():
        rival(path)
    ours_s: list[float] = []
    theirs_s: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(runs):
        ours_s.append(seconds(lambda: analysis(path)))
        for rival, call in rivals.items():
            theirs_s[rival].append(seconds(lambda call=call: call(path)))  # type: ignore[misc] # mypy and defaults of lambdas
    fastest = min(theirs_s, key=lambda rival: statistics.median(theirs_s[rival]))
    return Comparison(name, f"{fastest}, decoding alone", ours_s, theirs_s[fastest], OF_LIBRARIES)


def in_process(folder: Path, runs: int) -> list[Comparison]:
    """The numeric core in one process on one core, with everything imported and compiled."""
    (wav,) = inputs.stems(folder, 1, SONG_S, "wav", "PCM_16")
    (wav24,) = inputs.stems(folder, 1, SONG_S, "wav", "PCM_24")
    rows: list[Comparison] = []
    if importlib.util.find_spec("librosa"):
        peer = f"librosa {version('librosa')}: load, loop"
        rows.append(
            compare(
                "4 min WAV 16, hash and waveform",
                lambda: analysis(wav),
                peer,
                lambda: librosa_way(wav),
                runs,
                0.10,
            )
        )
    for path, bits, target in ((wav, 16, 1.7), (wav24, 24, 2.5)):
        rows.append(
            compare(
                f"4 min WAV {bits}, hash and waveform",
                lambda path=path: analysis(path),
                "hashlib's SHA-256 alone",
                lambda path=path: sha256(path),
                runs,
                target,
            )
        )
    for container in ("flac", "mp3", "ogg"):
        (path,) = inputs.stems(folder, 1, SONG_S, container)
        rows.append(beside_fastest(f"4 min {container.upper()}, hash and waveform", path, runs))
    return rows


def whole_processes(folder: Path, runs: int) -> list[Comparison]:
    """From the command to its end, Python's start included where it is Python's."""
    out = folder / "peaks.json"
    (wav,) = inputs.stems(folder, 1, SONG_S, "wav", "PCM_16")
    (mp3,) = inputs.stems(folder, 1, SONG_S, "mp3")
    rows = []
    if shutil.which("audiowaveform"):
        peer = version_of("audiowaveform", "--version")
        theirs = command(
            "audiowaveform", "-q", "-i", str(wav), "-o", str(out), "-z", "2646", "-b", "16"
        )
        rows.append(
            compare(
                "4 min WAV 16, hash and waveform in a worker",
                lambda: analysis(wav),
                f"{peer}, its process, no hash",
                theirs,
                runs,
                1.0,
            )
        )
    for path, kind in ((wav, "WAV 16"), (mp3, "MP3")):
        ours = command(WAVEFLOW, "peaks", str(path), "-o", str(out))
        peers = {
            "audiowaveform": ("-q", "-i", str(path), "-o", str(out), "-z", "2646", "-b", "16"),
            "ffmpeg": ("-v", "error", "-i", str(path), "-f", "null", "-"),
            "sox": (str(path), "-n", "stats"),
        }
        for name, arguments in peers.items():
            if shutil.which(name):
                title = f"4 min {kind}, `waveflow peaks`"
                what = {"ffmpeg": "decoding alone", "sox": "stats"}.get(name, "its waveform")
                theirs = command(name, *arguments)
                rows.append(compare(title, ours, f"{name}, {what}", theirs, runs))
    rows.append(
        compare(
            "4 min WAV 16, `waveflow hash`",
            command(WAVEFLOW, "hash", str(wav)),
            "sha256sum",
            command("sha256sum", str(wav)),
            runs,
        )
    )
    return rows


def memory(folder: Path) -> list[Figure]:
    """What an analysis of an hour holds, above a process that has done one of 4 minutes."""
    kinds = [("wav", "PCM_16"), ("wav", "PCM_24"), ("flac", None), ("mp3", None), ("ogg", None)]
    figures = []
    for container, encoding in kinds:
        (short,) = inputs.stems(folder, 1, SONG_S, container, encoding)
        (long,) = inputs.stems(folder, 1, LONG_S, container, encoding)
        call = [sys.executable, "-c", MEMORY, str(short), str(long)]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        name = f"60 min {container.upper()} {encoding or ''}".strip()
        figures.append(
            Figure(f"{name}: memory above an idle worker", float(done.stdout), "MB", MOST_MB)
        )
    return figures


def measure(folder: Path, runs: int) -> Report:
    """All of it."""
    return Report(
        "Audio",
        {
            "in a warm process": in_process(folder, runs),
            "whole processes": whole_processes(folder, runs),
        },
        memory(folder),
    )
