"""A song to try the service with: eight stems that share tempo, key and arrangement.

Every note is synthesised once, with its reverb, and placed wherever the arrangement asks for it:
that is what makes a minute of music take seconds. Sounds are ``float32``, ``(frames, 2)``.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile as sf

Rng = np.random.Generator
Timbre = tuple[tuple[float, float], ...]
_Event = tuple[int, str | int, int, float]  # sixteenth, drum or semitones, length, gain
Sound = npt.NDArray[np.float32]

BEAT_S = 0.5  # 120 BPM
BAR_S = 4 * BEAT_S
FADE_OUT_S = 3.0
REVERB_S = 1.6
# One cycle of a waveform is read without interpolation: at this size its noise is below -75 dB.
CYCLE_FRAMES = 1 << 14
# libsndfile's OGG encoder overflows the stack when it is given minutes in one write.
WRITE_BLOCK_FRAMES = 65536

# The arrangement, a character per bar: 0 rests, 1 to 9 is the intensity, the drums name their
# patterns; other lengths stretch the same 32 bars. Then encoding, Hz, channels, peak in dBFS.
PARTS = {
    #         intro verse build drop_____ break drop____outro
    "drums": ("0000 vvvv bbbr cddd dddf 000r cddd df00", "WAV 24-bit", 44100, 2, -4.5),
    "bass": ("0000 7777 7770 9999 9999 0000 9999 9950", "WAV 16-bit", 44100, 1, -11),
    "arpeggio": ("3456 4444 5678 7777 7777 3456 8888 8864", "MP3", 44100, 2, -11),
    "chords": ("0000 5666 7777 9999 9999 5555 9999 9950", "FLAC 16-bit", 44100, 2, -10),
    "pad": ("6789 5555 6789 6666 6666 9999 6666 6699", "OGG Vorbis", 44100, 2, -11.5),
    "lead": ("0000 0000 0000 8888 9999 0000 9999 9900", "WAV 16-bit", 48000, 2, -10),
    "percussion": ("0003 5555 6678 8888 8888 0003 8888 8800", "WAV 16-bit", 44100, 2, -10),
    "choir": ("0000 0000 3456 7777 7777 8899 8888 8890", "WAV 16-bit", 44100, 2, -11.5),
}
# Am9, Fmaj9, C, Gadd9: semitones above the key, the bass note last.
CHORDS = ((0, 3, 7, 14, 0), (0, 3, 7, 10, -4), (-2, 3, 7, 10, 3), (-2, 2, 5, 12, -2))
# A string is a bar of sixteenths. Drums: how hard. Notes: which step of the scale (lead), of the
# chord (arpeggio) or of root and octave (bass), or x for the whole chord.
BEATS = {
    "v": {"kick": "9.........7.....", "snare": "....8.......8...", "hat": "5.3.6.3.5.3.6.34"},
    "b": {"kick": "9...9...9...9...", "snare": "....8.......8..4", "hat": "5.3.6.3.5.3.6.34"},
    "r": {"riser": "9...............", "snare": "3.3.4.4.55566789", "hat": "3.3.3.3.4.4.4.4."},
    "d": {"kick": "9...9...9...9...", "snare": "....9.......9...", "hat": "5363536353635363"},
    "c": {"kick": "9...9...9...9...", "snare": "....9.......9...", "crash": "9..............."},
    "f": {"kick": "9...9...9.......", "snare": "....9...4.59..99", "hat": "5343534353......"},
    "percussion": {"shaker": "4253425342534253", "conga": "...6..5....6..46"},
}
NOTES = {
    "bass": ["0..0..1.0.01..0."],
    "chords": ["x..x..x...x.....", "x..x..x...x...x."],
    "arpeggio": ["0241536202415362", "0241536202475346"],
    "lead": ["4.....3.2...3.4.", "5.....4.2.....3.", "4.....6.4...2...", "3.....2.1.....3.",
             "4.....3.2...3.4.", "7...6.5...4.2...", "6...4.4.....2.3.", "4...3.1........."],
}  # fmt: skip
# pan from -1 to 1, length in s; skin: Hz, fall in Hz, decay in s; noise: gain, Hz, Hz, decay in s
DRUMS = {
    "kick": (0, 0.4, 48, 190, 0.14, 0.10, 1500, 6000, 0.006),
    "snare": (0, 0.5, 185, 90, 0.06, 0.55, 1200, 9500, 0.10),
    "hat": (0.25, 0.2, 0, 0, 1, 0.24, 7000, 15000, 0.03),
    "crash": (-0.2, 2.0, 0, 0, 1, 0.28, 3500, 13000, 0.55),
    "riser": (0, 2.0, 0, 0, 1, 0.006, 1500, 10000, -0.5),  # decays backwards: it grows
    "shaker": (0.5, 0.12, 0, 0, 1, 0.32, 4500, 12000, 0.03),
    "conga": (-0.5, 0.4, 220, 60, 0.11, 0.03, 400, 3000, 0.02),
}


@dataclass(frozen=True)
class Stem:
    """One track of the song, as a musician would upload it."""

    name: str
    path: Path
    encoding: str  # for people: "WAV 24-bit"
    sample_rate: int  # Hz
    channels: int


@dataclass(frozen=True)
class _Voice:
    """An instrument. A timbre lets pass what is near its (centre, width) pairs, in Hz."""

    octave: int
    dark: Timbre
    bright: Timbre
    times_s: tuple[float, float, float, float]  # attack, decay, release, from bright to dark
    sustain: float
    detune_cents: tuple[float, ...] = (0,)
    width: float = 0  # 1 puts the outermost detuned copies far left and far right
    vibrato_cents: float = 0
    reverb: float = 0
    duck: float = 0  # how far each kick pushes it down


AAH, OOH = ((750, 160), (1150, 200), (2700, 400)), ((380, 110), (800, 150), (2500, 300))
VOICES = {
    "bass": _Voice(-2, ((0, 190),), ((0, 1500),), (0.004, 0.5, 0.06, 0.09), 0.55, duck=0.5),
    "chords": _Voice(0, ((0, 800),), ((0, 5000),), (0.004, 0.35, 0.15, 0.12), 0.25,
                     (-9, 0, 9), 0.8, 0, 0.25, 0.4),
    "pad": _Voice(0, ((0, 600),), ((0, 2800),), (0.5, 3, 0.9, 2.5), 0.8,
                  (-13, -6, 0, 7, 12), 1, 0, 0.35, 0.6),
    "lead": _Voice(1, ((0, 2600),), ((0, 7500),), (0.012, 0.6, 0.12, 0.25), 0.7,
                   (-7, 0, 7), 0.4, 9, 0.25),
    "arpeggio": _Voice(1, ((0, 900),), ((0, 5500),), (0.003, 0.16, 0.05, 0.05), 0,
                       (-4, 4), 0.5, 0, 0.3, 0.3),
    "choir": _Voice(1, AAH, OOH, (0.3, 2, 0.7, 0.7), 0.85, (-14, -5, 3, 11), 1, 16, 0.5, 0.3),
}  # fmt: skip


def _noise(frames: int, low_hz: float, high_hz: float, rate: int, rng: Rng) -> Sound:
    """Noise between two frequencies, RMS 1, different left and right."""
    spectrum = np.fft.rfft(rng.standard_normal((frames, 2), dtype=np.float32), axis=0)
    hz = np.fft.rfftfreq(frames, 1 / rate)[:, None] + 1e-9
    noise = np.fft.irfft(spectrum / (1 + (low_hz / hz) ** 4 + (hz / high_hz) ** 4), frames, axis=0)
    return np.asarray(noise / noise.std(), dtype=np.float32)


@cache
def _room(frames: int, rate: int) -> npt.NDArray[np.complex64]:
    t = np.arange(int(REVERB_S * rate))[:, None] / rate
    decay = np.minimum(1, t / 0.015) * np.exp(-t / 0.32) * (1 - t / REVERB_S)
    room = decay * _noise(len(t), 250, 5000, rate, np.random.default_rng(1))
    room /= np.sqrt((room**2).sum(axis=0))
    return np.fft.rfft(room, frames, axis=0).astype(np.complex64)


def _finish(dry: Sound, reverb: float, rate: int) -> Sound:
    """Add the room; end on zero, because even a tail at -50 dB clicks when it is cut."""
    if reverb:
        frames = len(dry) + int(REVERB_S * rate)
        size = -(-frames // 16384) * 16384  # many factors of two: a fast FFT
        wet = np.fft.irfft(np.fft.rfft(dry, size, axis=0) * _room(size, rate), size, axis=0)
        wet[: len(dry)] += dry / reverb
        dry = (reverb * wet[:frames]).astype(np.float32)
    ramp = np.minimum(1, np.arange(len(dry))[::-1, None] / (0.01 * rate))
    return np.asarray(dry * ramp, dtype=np.float32)


def _cycle(timbre: Timbre, hz: float, rate: int) -> Sound:
    """One cycle of a filtered sawtooth, without partials above 0.4 × rate."""
    partials = np.arange(hz, 0.4 * rate, hz)
    gains = sum(1 / (1 + ((partials - centre) / width) ** 4) for centre, width in timbre)
    spectrum = np.zeros(CYCLE_FRAMES // 2 + 1, dtype=complex)
    spectrum[1 : len(partials) + 1] = -0.5j * CYCLE_FRAMES * gains * hz / partials
    return np.fft.irfft(spectrum).astype(np.float32)


def _note(voice: _Voice, midi: int, length_s: float, rate: int, rng: Rng) -> Sound:
    hz = 440 * 2 ** ((midi - 69) / 12)
    attack_s, decay_s, release_s, sweep_s = voice.times_s
    t = np.arange(int((length_s + release_s) * rate)) / rate
    dark, bright = _cycle(voice.dark, hz, rate), _cycle(voice.bright, hz, rate)
    sweep = np.exp(-t / sweep_s).astype(np.float32)
    vibrato = hz * (2 ** (voice.vibrato_cents / 1200) - 1) * np.minimum(1, t / 0.5)
    out = np.zeros((len(t), 2), dtype=np.float32)
    for copy, cents in enumerate(voice.detune_cents):
        speed = 2 * np.pi * rng.uniform(4.8, 5.8)
        phase = rng.random() + hz * 2 ** (cents / 1200) * t + vibrato / speed * np.sin(speed * t)
        at = (phase * CYCLE_FRAMES).astype(np.intp) & (CYCLE_FRAMES - 1)
        side = voice.width * (2 * copy / max(1, len(voice.detune_cents) - 1) - 1)
        wave = dark[at] + sweep * (bright[at] - dark[at])
        out += wave[:, None] * np.array([1 - side, 1 + side], dtype=np.float32)
    envelope = voice.sustain + (1 - voice.sustain) * np.exp(-t / decay_s)
    envelope *= np.minimum(1, t / attack_s) * np.clip(1 - (t - length_s) / release_s, 0, 1) ** 2
    return _finish(out * envelope[:, None].astype(np.float32), voice.reverb, rate)


def _drum(name: str, rate: int, rng: Rng) -> Sound:
    pan, seconds, hz, fall_hz, decay_s, gain, low_hz, high_hz, noise_s = DRUMS[name]
    t = np.arange(int(seconds * rate))[:, None] / rate
    skin = np.sin(2 * np.pi * (hz * t + fall_hz * 0.03 * (1 - np.exp(-t / 0.03))))
    noise = _noise(len(t), low_hz, high_hz, rate, rng) * np.exp(-t / noise_s)
    sides = np.minimum(1, t / 0.001) * np.minimum(1, [1 - pan, 1 + pan])
    hit = sides * (skin * np.exp(-t / decay_s) + gain * noise)
    return _finish(hit.astype(np.float32), 0.12 if name in ("snare", "conga") else 0, rate)


def _score(name: str, bar: int, mark: str, chord: int) -> Iterator[_Event]:
    if name not in VOICES:
        for drum, hits in BEATS[mark if name == "drums" else name].items():
            yield from ((i, drum, 0, int(hit) / 9) for i, hit in enumerate(hits) if hit != ".")
        return
    *tones, root = CHORDS[chord]
    ladders = {"bass": [root, root + 12], "lead": [0, 2, 3, 5, 7, 8, 10, 12]}
    ladder = ladders.get(name, tones + [12 + tone for tone in tones])
    phrase = NOTES.get(name, ["x..............."])  # the pad and the choir hold the chord
    steps = phrase[bar % len(phrase)]
    for step, end in pairwise([*(i for i, char in enumerate(steps) if char != "."), len(steps)]):
        for tone in tones if steps[step] == "x" else [ladder[int(steps[step])]]:
            yield step, tone, end - step, 1.0


def _render(name: str, seconds: float, seed: int) -> Sound:
    arrangement, _, rate, _, peak_dbfs = PARTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    key = 57 + int(np.random.default_rng(seed).integers(-3, 3))  # one for all stems: about A minor
    frames, bars = round(seconds * rate), int(-(-seconds // BAR_S))
    # The middle of the stretch a bar stands for: a song of one bar is a bar of the drop.
    slots = [(2 * bar + 1) * 16 // bars for bar in range(bars)]
    out = np.zeros((frames, 2), dtype=np.float32)
    sounds: dict[tuple[str | int, int], Sound] = {}
    for bar, mark in enumerate(arrangement.replace(" ", "")[slot] for slot in slots):
        chord = bar % 4 if bar + 1 < bars else 0  # the last bar comes home
        loudness = int(mark) / 9 if mark.isdigit() else 1.0
        for step, what, length, gain in _score(name, bar, mark, chord) if loudness else ():
            if (what, length) not in sounds:
                sounds[what, length] = _drum(what, rate, rng) if isinstance(what, str) else _note(
                    VOICES[name], key + what, length * BAR_S / 16, rate, rng)  # fmt: skip
            sound = sounds[what, length]
            start = round((bar + step / 16) * BAR_S * rate)
            span = out[start : start + len(sound)]
            span += np.float32(gain * loudness * rng.uniform(0.8, 1)) * sound[: len(span)]
    if name in VOICES:
        beats = PARTS["drums"][0].replace(" ", "")
        kicked = np.repeat([beats[slot] in "bcdf" for slot in slots], round(BAR_S * rate))[:frames]
        since = np.arange(frames) / rate % BEAT_S
        dip = kicked * np.exp(-since / 0.11) * np.minimum(1, since / 0.008)
        out *= (1 - VOICES[name].duck * dip[:, None]).astype(np.float32)
    out *= np.minimum(1, np.arange(frames)[::-1, None] / (FADE_OUT_S * rate)).astype(np.float32)
    return out * np.float32(10 ** (peak_dbfs / 20) / np.abs(out).max())


def _record(folder: Path, name: str, seconds: float, seed: int) -> Stem:
    _, encoding, rate, channels, _ = PARTS[name]
    path = folder / f"{name}.{encoding.split()[0].lower()}"
    sound = _render(name, seconds, seed)[:, :channels]
    with sf.SoundFile(path, "w", rate, channels, "PCM_24" if "24" in encoding else None) as file:
        for start in range(0, len(sound), WRITE_BLOCK_FRAMES):
            file.write(sound[start : start + WRITE_BLOCK_FRAMES])
    return Stem(name, path, encoding, rate, channels)


def make_song(folder: Path, seconds: float = 64.0, seed: int = 7) -> list[Stem]:
    """Write the stems of a song into ``folder``; the same seed gives the same samples.

    All stems last ``seconds`` (at least a bar, 2 s); each peaks between -12 and -1 dBFS, and
    the levels keep their plain sum just below full scale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # numpy and the encoders release the GIL
        return list(pool.map(lambda name: _record(folder, name, seconds, seed), PARTS))
