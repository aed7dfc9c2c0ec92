"""Damaged and hostile audio files, and what comes of them: `python -m tests.fuzz --help`.

Every file is analysed, and mixed, in a process of its own kind that may crash, hang or run out
of memory: that is an outcome, not the end of the run.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

FRAMES = 30_000
TIME_LIMIT_S = 20.0
MEMORY_MB = 600
FORMATS = {
    "wav16": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wavfloat": ("WAV", "FLOAT"),
    "wavex": ("WAVEX", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
Mutation = Callable[[bytes, random.Random], bytes]


def sound(name: str, seed: int, frames: int = FRAMES, channels: int = 2) -> bytes:
    """A valid file."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None]
    samples = 0.4 * np.sin(t * 0.05 * (1 + np.arange(channels))) + rng.normal(
        0, 0.05, (frames, channels)
    )
    file = io.BytesIO()
    container, encoding = FORMATS[name]
    with soundfile.SoundFile(file, "w", 44100, channels, encoding, format=container) as out:
        out.write(samples)
    return file.getvalue()


# --- what is done to them


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def bits_flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 2, 8, 64])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def header_damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 2, 4])):
        out[rng.randrange(min(128, len(out)))] = rng.choice(
            [0, 1, 127, 128, 255, rng.randrange(256)]
        )
    return bytes(out)


def sizes_lie(data: bytes, rng: random.Random) -> bytes:
    """A 32-bit number in the header becomes 0, 1, 2^31 - 1, 2^31 or 2^32 - 1."""
    out = bytearray(data)
    at = rng.randrange(max(1, min(120, len(out) - 4)))
    value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    struct.pack_into(rng.choice("<>") + "I", out, at, value)
    return bytes(out)


def chunk_repeated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randrange(1, 4000)]
    at = rng.randrange(len(data))
    return data[:at] + piece * rng.choice([1, 3, 50]) + data[at:]


def chunk_dropped(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 4000) :]


def noise_inside(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    length = rng.randrange(1, 3000)
    return data[:start] + rng.randbytes(length) + data[start + length :]


def joined(data: bytes, rng: random.Random) -> bytes:
    other = sound(rng.choice(sorted(FORMATS)), rng.randrange(4), 500)
    return rng.choice([data + other, other + data, data + data])


def tagged(data: bytes, rng: random.Random) -> bytes:
    """An ID3 tag before it, whose length may be a lie."""
    length = rng.choice([0, 10, 2000, 2**28 - 1])
    size = bytes((length >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + size + b"\0" * min(length, 2000) + data


MUTATIONS: tuple[Mutation, ...] = (
    truncated,
    bits_flipped,
    bits_flipped,
    header_damaged,
    header_damaged,
    sizes_lie,
    sizes_lie,
    chunk_repeated,
    chunk_dropped,
    noise_inside,
    joined,
    tagged,
)


def monsters() -> Iterator[tuple[str, bytes]]:
    """What no mutation finds: (format, file)."""
    yield "wav16", _wav(1, 1024, 16, bytes(1024 * 2 * 10))
    yield "wav16", _wav(1, 65535, 16, bytes(1000))
    yield "wav16", _wav(1, 0, 16, bytes(1000))
    yield "wav16", _wav(1, 2, 16, b"")
    yield "wav16", _wav(1, 2, 16, bytes(100), claim=2**32 - 1)
    yield "wav16", _wav(1, 2, 16, bytes(100), claim=2**31)
    yield "wav16", _wav(1, 1, 16, bytes(100), rate=1)
    yield "wav16", _wav(1, 1, 16, bytes(100), rate=2**32 - 1)
    yield "wav16", b"RIFF\xff\xff\xff\xffWAVE" + b"JUNK\0\0\0\0" * 100_000
    floats = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.5] * 200, np.float32)
    yield "wavfloat", _wav(3, 1, 32, floats.tobytes())
    yield "wavfloat", _wav(3, 2, 64, np.full(800, 1e308).tobytes())
    # 100 minutes of silence in 100 kB.
    for name in ("flac", "flac24", "ogg"):
        yield name, _silence(name, 600)
    flac = bytearray(sound("flac", 1))
    flac[21:26] = b"\xff" * 5  # 2^36 - 1 frames
    yield "flac", bytes(flac)
    yield "flac", b"fLaC" + (b"\x04\xff\xff\xff" + bytes(1000))
    yield "mp3", b"\xff\xfb\x90\x64" * 5000
    yield "mp3", b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + bytes(100)
    yield "ogg", b"OggS" + b"\0" * 23 + b"\xff" * 300
    yield "wav16", b"%PDF-1.7 " + bytes(2000)
    yield "mp3", b""


def _wav(
    tag: int, channels: int, bits: int, data: bytes, *, rate: int = 44100, claim: int | None = None
) -> bytes:
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align % 65536, bits)
    size = len(data) if claim is None else claim
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", (len(body)) % 2**32) + body


def _silence(name: str, seconds: int) -> bytes:
    container, encoding = FORMATS[name]
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 2, encoding, format=container) as out:
        for _ in range(seconds):
            out.write(np.zeros((8000, 2)))
    return file.getvalue()


def corpus(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(format, what was done, file), `count` of each format, and the monsters."""
    for name in FORMATS:
        rng = random.Random(f"{seed} {name}")
        originals = [sound(name, number) for number in range(4)]
        for number in range(count):
            data = rng.choice(originals)
            for mutation in rng.choices(MUTATIONS, k=rng.choice([1, 1, 2])):
                data = mutation(data, rng) or b"\0"
            yield name, f"{seed}/{number} {mutation.__name__}", data
    for number, (name, data) in enumerate(monsters()):
        yield name, f"monster {number}", data


# --- what comes of them


def work() -> None:
    """Takes files on stdin, one a line in base64, and answers each with its outcome."""
    from waveflow_ray.audio.decode import Limits, open_audio
    from waveflow_ray.audio.mix import mix_files
    from waveflow_ray.audio.peaks import waveform_of
    from waveflow_ray.audio.spec import MixSpec, StemSpec
    from waveflow_ray.errors import JobError
    from waveflow_ray.jobs.work import memory_limit, peak_memory_mb, reset_peak_memory

    folder = Path(tempfile.mkdtemp())
    path = folder / "file"
    whole = folder / "whole.wav"
    whole.write_bytes(sound("wav16", 0))
    mix_files(MixSpec(stems=(StemSpec(path=str(whole)),)), folder / "warm.wav")
    reset_peak_memory()  # compiling, the first time, takes more than any file
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # mpg123 tells of every damaged frame

    def analysed() -> str:
        with open_audio(path, Limits(max_duration_s=900)) as reader:
            waveform = waveform_of(reader, 100)
        assert len(waveform.peaks) == 100
        assert all(0 <= peak <= 1 for peak in waveform.peaks)
        return "truncated" if waveform.truncated else "SUCCESS"

    def mixed() -> str:
        spec = MixSpec(stems=(StemSpec(path=str(whole)), StemSpec(path=str(path))))
        mixdown = mix_files(spec, folder / "mix.wav")
        assert mixdown.frames == soundfile.info(folder / "mix.wav").frames
        assert np.isfinite(mixdown.peak)
        return "SUCCESS"

    for line in sys.stdin:
        path.write_bytes(base64.b64decode(line))
        outcomes = []
        for step in (analysed, mixed):
            try:
                with memory_limit(MEMORY_MB):
                    outcomes.append(step())
            except JobError as error:
                outcomes.append(str(error.code))
            except MemoryError:
                outcomes.append("undecodable_audio")  # as the service says it
            except Exception as error:
                outcomes.append(f"broken: {type(error).__name__}")
        print(json.dumps({"outcomes": outcomes, "peak_mb": peak_memory_mb()}), flush=True)


class Worker:
    """A process that works off files; started again when one was too much for it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def outcome(self, data: bytes) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz", "--work"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(data) + b"\n")
        self._process.stdin.flush()
        # A new process imports for some seconds before its first answer.
        ready, _, _ = select.select([self._process.stdout], [], [], TIME_LIMIT_S + 40)
        line = self._process.stdout.readline() if ready else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.end()
        return {"outcomes": ["crashed" if ready else "hung"] * 2, "peak_mb": 0.0}

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def campaign(count: int, seed: int) -> dict[str, Any]:
    """Outcomes by format, the largest memory, the slowest file, and what went wrong."""
    table: dict[str, Counter[str]] = {name: Counter() for name in FORMATS}
    bad: list[dict[str, Any]] = []
    peak_mb = slowest_s = 0.0
    worker = Worker()
    try:
        for name, what, data in corpus(count, seed):
            started = time.monotonic()
            result = worker.outcome(data)
            slowest_s = max(slowest_s, time.monotonic() - started)
            peak_mb = max(peak_mb, result["peak_mb"])
            table[name].update(result["outcomes"])
            if any(one.startswith(("crashed", "hung", "broken")) for one in result["outcomes"]):
                bad.append({"format": name, "what": what, "outcomes": result["outcomes"]})
        after = worker.outcome(sound("wav16", 0))["outcomes"]
    finally:
        worker.end()
    return {
        "seed": seed,
        "outcomes": {name: dict(sorted(counts.items())) for name, counts in table.items()},
        "peak_mb": round(peak_mb),
        "slowest_s": round(slowest_s, 2),
        "bad": bad,
        "a valid file afterwards": after,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Analyse and mix damaged files, and count what comes of it.",
        epilog="Example: make fuzz | python -m tests.fuzz --count 2000 --seed 7 --json",
    )
    parser.add_argument("--count", type=int, default=500, help="of each format (500)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return 0
    found = campaign(options.count, options.seed)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        codes = sorted({code for counts in found["outcomes"].values() for code in counts})
        print("| format | " + " | ".join(codes) + " |")
        print("| --- |" + " --- |" * len(codes))
        for name, counts in found["outcomes"].items():
            print(f"| {name} | " + " | ".join(str(counts.get(code, 0)) for code in codes) + " |")
        for name in ("seed", "peak_mb", "slowest_s", "bad", "a valid file afterwards"):
            print(f"{name}: {found[name]}")
    return 1 if found["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
