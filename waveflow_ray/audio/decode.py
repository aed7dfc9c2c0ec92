"""Audio files as blocks of samples, in constant memory, by libsndfile and dr_flac; PCM by itself.

Only the containers and encodings listed here reach the caller, and only files that begin like
one of them reach a decoder at all: libsndfile's readers of rare formats have had memory faults.
What a header says is never used to allocate anything; frames are counted as they come.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from waveflow_ray.audio.container import Survey, survey
from waveflow_ray.audio.flac import FlacFile
from waveflow_ray.audio.pcm import to_float
from waveflow_ray.audio.pcmfile import PcmFile
from waveflow_ray.audio.samples import (
    MAX_CHANNELS,
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    Block,
    silence_non_finite,
)
from waveflow_ray.audio.sndfile import SequentialFile, View
from waveflow_ray.errors import ErrorCode, JobError

BLOCK_FRAMES = 128 * 1024
"""Measured with the peak meter on 4 min of 16 bit stereo WAV: 50 ms in blocks of 16 Ki frames,
30 ms of 32 Ki, 22-27 ms of 64 Ki, 18-27 ms of 128 Ki. Cost per call outweighs cache misses."""
MAX_DURATION_S = 4 * 3600.0


@dataclass(frozen=True)
class Limits:
    """What a file may have: channels, Hz, seconds. Never more than the constants above."""

    max_channels: int = MAX_CHANNELS
    min_rate_hz: int = MIN_RATE_HZ
    max_rate_hz: int = MAX_RATE_HZ
    max_duration_s: float = MAX_DURATION_S

    def max_frames(self, sample_rate: int) -> int:
        """How many frames are allowed at so many Hz."""
        return round(self.max_duration_s * sample_rate)

    def permit(self, channels: int, sample_rate: int, frames: int) -> bool:
        """Whether such audio is within all limits."""
        return (
            1 <= channels <= self.max_channels
            and self.min_rate_hz <= sample_rate <= self.max_rate_hz
            and frames <= self.max_frames(sample_rate)
        )


NO_OTHERS = Limits()

CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF"})
EIGHT_OR_SIXTEEN_BITS = frozenset({"PCM_S8", "PCM_U8", "PCM_16"})
MORE_BITS = frozenset({"PCM_24", "PCM_32"})
LOSSY = frozenset({"VORBIS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"})
ENCODINGS = EIGHT_OR_SIXTEEN_BITS | MORE_BITS | LOSSY | {"FLOAT", "DOUBLE"}

SUPPORTED = "WAV, FLAC, OGG Vorbis, MP3 and AIFF are supported."


class AudioReader:
    """An open audio file. Use it in a ``with`` statement; `open_audio` makes it.

    Attributes:
        name: what the caller calls the file, for error messages; may be empty.
        sample_rate: in Hz, 8,000 to 192,000.
        channels: 1 to 8.
        claimed_frames: how many there are by header or count, 0 if unknown. May be wrong:
            good for planning, not for allocating.
        container: as libsndfile names it: WAV, WAVEX, RF64, FLAC, OGG, MP3, AIFF.
        encoding: as libsndfile names it: PCM_16, FLOAT, VORBIS, …
        frames_read: since the start.
        truncated: the file breaks off or is damaged, so that something is missing. Final once
            `blocks` has come to its end.
    """

    def __init__(self, file: int | str | Path, limits: Limits, name: str) -> None:
        self.name = name
        self._limits = limits
        self._owns_fd = not isinstance(file, int)
        self._fd = file if isinstance(file, int) else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._file: Any = None
        try:
            self._survey = _checked_survey(self._fd, name)
            self._file = self._open()
            self.sample_rate = int(self._file.samplerate)
            self.channels = int(self._file.channels)
            self.container = str(self._file.format)
            self.encoding = str(self._file.subtype)
            self._check_limits()
        except BaseException:
            self.close()
            raise
        # libsndfile's largest integer stands for 'unknown'. Of an MP3 without a Xing header its
        # number is an estimate, of one with it exact; counting gives an upper bound.
        claimed = max(0, int(self._file.frames)) if self._file.frames < 2**62 else 0
        counted = self._survey.frames
        self._known_frames = None if counted is None else min(counted, claimed)
        self.claimed_frames = claimed if counted is None else min(counted, claimed)
        self._max_frames = limits.max_frames(self.sample_rate)
        self._integer = self.encoding in EIGHT_OR_SIXTEEN_BITS
        self._failed = False
        self.frames_read = 0
        self.truncated = self._survey.cut

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a descriptor given by the caller stays open."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._owns_fd and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def rewind(self) -> None:
        """Start over: the next `blocks` begins with the first frame."""
        # Opened anew, because decoders that met an error or the end do not all seek back.
        self._reopen()
        self._failed = False
        self.frames_read = 0
        self.truncated = self._survey.cut

    def blocks(self, block_frames: int = BLOCK_FRAMES) -> Iterator[Block]:
        """The samples, from where the last call of `blocks` stopped to the end.

        Args:
            block_frames: largest number of frames in a block.

        Yields:
            C-contiguous ``(n, channels)`` with n >= 1, either always int16 (full scale 32768;
            exact) for sources of 8 or 16 bits, or always float32 (full scale 1.0). NaN and
            infinite samples are 0. **Each block is valid only until the next one**: the
            buffer is used again.

        Raises:
            JobError: undecodable_audio, when there is not one frame, or audio is longer than
                the limit.
        """
        dtype = np.int16 if self._integer else np.float32
        buffer = np.empty((block_frames, self.channels), dtype)
        raw = self._raw_buffer(buffer)
        while (count := self._read(raw)) > 0:
            self.frames_read += count
            if self.frames_read > self._max_frames:
                hours = self._limits.max_duration_s / 3600
                raise JobError(
                    ErrorCode.UNDECODABLE_AUDIO,
                    f"The audio is longer than the {hours:g} hours that are allowed.",
                    self.name,
                )
            block = buffer[:count]
            if raw is not buffer:
                # 24 bits fit into float32 exactly, and integers are read faster than floats.
                to_float(raw[:count], block)
            elif not self._integer:
                silence_non_finite(block)
            yield block
        if self.frames_read < self._survey.least_frames:
            self.truncated = True
        if self.frames_read == 0:
            raise JobError(
                ErrorCode.UNDECODABLE_AUDIO,
                "The file contains no audio that can be read.",
                self.name,
            )

    def _raw_buffer(self, buffer: NDArray[Any]) -> NDArray[Any]:
        return np.empty(buffer.shape, np.int32) if self.encoding in MORE_BITS else buffer

    def _read(self, out: NDArray[Any]) -> int:
        """Fill `out`; returns the number of frames, 0 at the end or where decoding fails."""
        if self._failed:
            return 0
        known = self._known_frames
        # Not beyond the known end in one go: tags behind a FLAC are an error to libsndfile.
        rest = len(out) if known is None else known - self.frames_read
        if 0 < rest < len(out):
            out = out[:rest]
        try:
            return len(self._file.read(out=out))
        except soundfile.LibsndfileError:
            self._failed = True
            if rest <= 0:
                return 0
            if not self._survey.least_frames:
                self.truncated = True
            return self._salvage(out)

    def _salvage(self, out: NDArray[Any]) -> int:
        """Read again what was decoded before the error, and no more.

        libsndfile leaves it in the buffer but does not say how much it is. A buffer full of
        NaN shows it; without this the result would depend on the size of the blocks.
        """
        found = np.full(out.shape, np.nan, np.float32)
        self._reopen()
        try:
            done = 0
            while done < self.frames_read:
                done += len(self._file.read(out=out[: self.frames_read - done]))
            self._file.read(out=found)
        except soundfile.LibsndfileError:
            pass
        missing = np.isnan(found[:, 0])
        count = int(missing.argmax()) if missing.any() else len(found)
        # Exact: no source of integers that can fail here has more than 24 bits.
        scale = {np.int16: 2.0**15, np.int32: 2.0**31}.get(out.dtype.type, 1.0)
        np.multiply(found[:count], np.float32(scale), out=out[:count], casting="unsafe")
        return count

    def _reopen(self) -> None:
        self._file.close()
        self._file = self._open()

    def _open(self) -> Any:
        plan = self._survey
        if plan.kind == "audio/flac" and (flac := FlacFile.open(self._fd)) is not None:
            return flac
        if (pcm := PcmFile.open(self._fd)) is not None:
            return pcm
        try:
            if not plan.always_show:
                os.lseek(self._fd, 0, os.SEEK_SET)
                file = SequentialFile(self._fd, closefd=False)
                if file.frames >= (plan.frames or 0):
                    return file
                file.close()
            return SequentialFile(View(self._fd, plan.prefix, plan.start))
        except soundfile.LibsndfileError as error:
            raise JobError(
                ErrorCode.UNDECODABLE_AUDIO,
                "The audio file is damaged or incomplete and cannot be opened.",
                f"{self.name} {error}".strip(),
            ) from error

    def _check_limits(self) -> None:
        if self.container not in CONTAINERS or self.encoding not in ENCODINGS:
            raise JobError(
                ErrorCode.UNSUPPORTED_MEDIA_TYPE,
                f"{self.container} files encoded as {self.encoding} cannot be used. {SUPPORTED}",
                self.name,
            )
        limits = self._limits
        if not 1 <= self.channels <= limits.max_channels:
            raise JobError(
                ErrorCode.UNDECODABLE_AUDIO,
                f"The file has {self.channels} channels; 1 to {limits.max_channels} are allowed.",
                self.name,
            )
        if not limits.min_rate_hz <= self.sample_rate <= limits.max_rate_hz:
            raise JobError(
                ErrorCode.UNDECODABLE_AUDIO,
                f"The sample rate is {self.sample_rate} Hz; "
                f"{limits.min_rate_hz} to {limits.max_rate_hz} Hz are allowed.",
                self.name,
            )


def open_audio(file: int | str | Path, limits: Limits = NO_OTHERS, name: str = "") -> AudioReader:
    """Open an audio file, whatever its name, by its content.

    Args:
        file: a path, or the descriptor of a seekable file. A descriptor is not closed, and
            its position is used: no two readers may share one.
        limits: the duration is checked while decoding.
        name: what to call it in errors.

    Raises:
        JobError: unsupported_media_type (not WAV, FLAC, OGG Vorbis, MP3 or AIFF, or a rare
            encoding in one of them), undecodable_audio (damaged, empty, more than
            8 channels, a sample rate outside 8 to 192 kHz).
        OSError: there is no such file.
    """
    return AudioReader(file, limits, name)


def _checked_survey(fd: int, name: str) -> Survey:
    if os.fstat(fd).st_size == 0:
        raise JobError(ErrorCode.UNDECODABLE_AUDIO, "The file is empty.", name)
    found = survey(fd)
    if found.kind is None:
        raise JobError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"This is not an audio file. {SUPPORTED}", name
        )
    return found
