"""What a mix shall be: the stems, where and how loud they sound, the level and the file.

These are the fields of the mix message as they come over the wire; docs/messages.md has them
for users. The defaults are the mix of the Celery worker: the average of the stems, no sample
above 0.95, WAV with 16 bits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

MAX_KEY_BYTES = 1024
MAX_TIME_S = 24 * 3600.0
MAX_GAIN_DB = 20.0
"""With the 3 dB of a hard pan on top, so many stems still fit the bus that 512 are no limit."""
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Of MPEG 2.5, 2 and 1, layer III."""


def _short_enough(key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"longer than {MAX_KEY_BYTES} bytes")
    return key


def _number(value: Any) -> Any:
    # JSON has one kind of number; text and true are none.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("too large a number") from None


def not_empty(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """For lists; unlike pydantic's own check it is silent where an item is at fault."""
    if not items:
        raise ValueError("empty")
    return items


Key = Annotated[StrictStr, Field(min_length=1), AfterValidator(_short_enough)]
"""An object's key in the bucket."""
Number = Annotated[float, BeforeValidator(_number)]
Seconds = Annotated[Number, Field(ge=0, le=MAX_TIME_S)]
Decibels = Annotated[Number, Field(ge=-100, le=0)]


class StemSpec(BaseModel):
    """One stem of a mix: which part of its file sounds, when, and how loud.

    Attributes:
        path: key of the object, or path of the file.
        gain_db: 0 leaves it as it is.
        pan: -1 left, 0 centre, 1 right; constant power, 0 dB in the centre.
        offset_s: where in the mix the part begins; if negative, so much of it is left out.
        start_s, end_s: the part of the file, in its own time; to its end if `end_s` is None.
        fade_in_s, fade_out_s: linear, at the beginning and the end of the part.
        mute: is not heard, and does not count.
        solo: if any stem has it, only those that have it are heard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Key
    gain_db: Annotated[Number, Field(ge=-120, le=MAX_GAIN_DB)] = 0.0
    pan: Annotated[Number, Field(ge=-1, le=1)] = 0.0
    offset_s: Annotated[Number, Field(ge=-MAX_TIME_S, le=MAX_TIME_S)] = 0.0
    start_s: Seconds = 0.0
    end_s: Annotated[Number, Field(gt=0, le=MAX_TIME_S)] | None = None
    fade_in_s: Seconds = 0.0
    fade_out_s: Seconds = 0.0
    mute: StrictBool = False
    solo: StrictBool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            return {name: value for name, value in fields.items() if value is not None}
        return fields

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s {self.end_s:g} is not behind start_s {self.start_s:g}")
        return self

    @property
    def is_plain(self) -> bool:
        """Nothing but its path is given."""
        return self == StemSpec(path=self.path)


class MixSpec(BaseModel):
    """A mix. What is None depends on the others: see the properties.

    Attributes:
        normalization: ``average`` divides the sum by the number of stems and lowers it until
            no sample is above 0.95; ``peak`` brings the largest sample to `target_peak_dbfs`,
            ``loudness`` the integrated loudness to `target_lufs` as far as the true peak stays
            below `true_peak_dbtp`; ``none`` leaves the sum.
        bit_depth: of WAV 16, 24 or 32 (float), of FLAC 16 or 24.
        dither: TPDF, for 16 and 24 bits.
        sample_rate: in Hz; the highest of the stems if None.
        channels: 1 or 2; 2 if None and any stem is not mono or not in the centre.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    stems: Annotated[tuple[StemSpec, ...], AfterValidator(not_empty)]
    normalization: Literal["average", "peak", "loudness", "none"] = "average"
    target_peak_dbfs: Decibels | None = None
    target_lufs: Annotated[Number, Field(ge=-70, le=0)] | None = None
    true_peak_dbtp: Decibels | None = None
    output_format: Literal["wav", "flac", "ogg", "mp3"] = "wav"
    bit_depth: Literal[16, 24, 32] | None = None
    dither: StrictBool = False
    sample_rate: Annotated[StrictInt, Field(ge=8000, le=192_000)] | None = None
    channels: Annotated[StrictInt, Field(ge=1, le=2)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kind, format_, bits = self.normalization, self.output_format, self.bit_depth
        for name, needed in (
            ("target_peak_dbfs", "peak"),
            ("target_lufs", "loudness"),
            ("true_peak_dbtp", "loudness"),
        ):
            if getattr(self, name) is not None and kind != needed:
                raise ValueError(f"{name} is for normalization {needed!r}, not {kind!r}")
        if format_ in ("ogg", "mp3") and (bits is not None or self.dither):
            raise ValueError(f"bit_depth and dither are for wav and flac, not {format_}")
        if format_ == "flac" and bits == 32:
            raise ValueError("bit_depth of flac is 16 or 24")
        if bits == 32 and self.dither:
            raise ValueError("dither is for 16 and 24 bits")
        if format_ == "mp3" and self.sample_rate not in (None, *MP3_RATES):
            raise ValueError(f"sample_rate of mp3 is one of {', '.join(map(str, MP3_RATES))}")
        return self

    @property
    def audible(self) -> tuple[int, ...]:
        """Indices of the stems that are heard."""
        solo = any(stem.solo for stem in self.stems)
        return tuple(
            i for i, stem in enumerate(self.stems) if not stem.mute and (stem.solo or not solo)
        )
