"""The plan of a mix: nothing left out, nothing twice, memory bounded, whatever the stems."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from waveflow_ray.audio.bus import WINDOW_FRAMES, fraction_bits
from waveflow_ray.audio.clip import clip_of
from waveflow_ray.audio.pcm import PcmLayout
from waveflow_ray.audio.plan import CELL_BYTES, MixPlan, Part, StemInfo, plan_mix
from waveflow_ray.audio.spec import MixSpec, StemSpec
from waveflow_ray.errors import ErrorCode, JobError

RATES = (8_000, 44_100, 48_000, 192_000)
ENCODINGS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


def pcm(
    name: str = "a.wav",
    frames: int = 1000,
    rate: int = 44_100,
    channels: int = 2,
    encoding: str = "PCM_16",
) -> StemInfo:
    """A PCM file as the probe finds it."""
    layout = PcmLayout("WAV", encoding, False, rate, channels, 44, frames)
    size = 44 + frames * layout.frame_bytes
    return StemInfo(name, size, rate, channels, frames, layout)


def mp3(name: str = "a.mp3", size: int = 10_000, rate: int = 44_100, channels: int = 2) -> StemInfo:
    return StemInfo(name, size, rate, channels)


stem_infos = st.one_of(
    st.builds(
        pcm,
        frames=st.integers(1, 3_000_000),
        rate=st.sampled_from(RATES),
        channels=st.integers(1, 8),
        encoding=st.sampled_from(sorted(ENCODINGS)),
    ),
    st.builds(
        mp3,
        size=st.integers(1, 10**9),
        rate=st.sampled_from(RATES),
        channels=st.integers(1, 8),
    ),
)
wishes = st.builds(
    lambda **fields: StemSpec(path="x", **fields),
    gain_db=st.floats(-60, 20),
    pan=st.floats(-1, 1),
    offset_s=st.floats(-20, 200),
    fade_in_s=st.floats(0, 5),
    fade_out_s=st.floats(0, 5),
    mute=st.booleans(),
    solo=st.booleans(),
)


def plan_of(*stems: StemInfo, parallelism: int = 2, **fields: object) -> MixPlan:
    specs = fields.pop("stems", [{"path": stem.name} for stem in stems])
    spec = MixSpec.model_validate({"stems": specs, **fields})
    return plan_mix(spec, stems, parallelism)


@given(
    st.lists(st.tuples(stem_infos, wishes), min_size=1, max_size=40),
    st.integers(1, 64),
    st.sampled_from([1 << 10, 4_097, 1 << 16, WINDOW_FRAMES]),
)
def test_every_frame_is_in_exactly_one_cell(
    stems: list[tuple[StemInfo, StemSpec]], parallelism: int, window_frames: int
) -> None:
    """Of every stem that is heard, each frame within the mix; and cells fit their memory."""
    spec = MixSpec(stems=tuple(wish for _, wish in stems))
    infos = [info for info, _ in stems]
    try:
        plan = plan_mix(spec, infos, parallelism, window_frames)
    except JobError:  # nothing is left to hear
        reject()
    size = plan.format.window_frames
    assert size <= window_frames
    assert [part.index for part in plan.parts] == list(spec.audible)
    covered: dict[int, int] = {part.index: 0 for part in plan.parts}
    seen = set()
    for cell in plan.cells:
        assert cell.memory <= CELL_BYTES
        for part in cell.parts:
            assert (part.index, cell.window) not in seen
            seen.add((part.index, cell.window))
            if cell.window is None:
                covered[part.index] += 1
            else:
                begin, end = visible(part)
                covered[part.index] += max(
                    0, min(end, (cell.window + 1) * size) - max(begin, cell.window * size)
                )
    for part in plan.parts:
        is_by_range = part.stem.layout and part.stem.sample_rate == plan.format.sample_rate
        if is_by_range:
            begin, end = visible(part)
            assert covered[part.index] == max(0, end - begin)
        else:
            assert covered[part.index] == 1
    total_weight = sum(part.clip.weight for part in plan.parts)
    assert total_weight * 8 * 2**plan.format.bits <= 2**31
    if plan.frames is not None:
        assert plan.frames == max(visible(part)[1] for part in plan.parts)


def visible(part: Part) -> tuple[int, int]:
    """Where in the mix a stem sounds."""
    assert part.clip.length is not None
    return max(0, part.clip.offset), part.clip.offset + part.clip.length


def test_pcm_is_cut_into_windows_and_the_rest_into_groups() -> None:
    """Windows for what can be read by range; as many groups as run at a time for the rest."""
    stems = [pcm(frames=4 * WINDOW_FRAMES), mp3(size=30), mp3(size=20), mp3(size=10)]
    plan = plan_of(*stems, parallelism=2)
    assert [cell.window for cell in plan.cells] == [None, None, 0, 1, 2, 3]
    assert [[part.stem.size for part in cell.parts] for cell in plan.cells[:2]] == [[30], [20, 10]]
    assert plan.frames is None
    assert len(plan.why) == 2


def test_resampled_pcm_is_decoded_from_its_start() -> None:
    """A resampler has a memory, so its stem is one piece; the reason is told."""
    plan = plan_of(pcm(rate=44_100), pcm(rate=48_000))
    assert plan.format.sample_rate == 48_000
    assert [cell.window for cell in plan.cells] == [None, 0]
    assert plan.frames == 1088
    assert "1 because they are resampled" in plan.why[1]


def test_windows_without_stems_make_no_cell() -> None:
    """Silence between two stems costs nothing."""
    far = {"path": "b", "offset_s": 10 * WINDOW_FRAMES / 44_100}
    plan = plan_of(pcm(), pcm(), stems=[{"path": "a"}, far])
    assert [cell.window for cell in plan.cells] == [0, 10]
    assert [len(cell.parts) for cell in plan.cells] == [1, 1]


def test_more_groups_than_processors_where_memory_asks_for_it() -> None:
    """A hundred surround files do not fit one process."""
    plan = plan_of(*[mp3(channels=8)] * 100, parallelism=1)
    assert len(plan.cells) > 1
    assert all(cell.memory <= CELL_BYTES for cell in plan.cells)


def test_a_group_is_resumed_behind_its_last_window_and_a_window_as_it_is() -> None:
    plan = plan_of(mp3(), pcm())
    row, column = plan.cells
    assert row.resumed(3) == replace(row, skip=3)
    assert column.resumed(1) == column


def test_rate_and_channels() -> None:
    """The best of the stems that are heard, unless something else is asked for."""
    assert plan_of(pcm(rate=48_000), pcm(rate=96_000)).format.sample_rate == 96_000
    muted = [{"path": "a"}, {"path": "b", "mute": True}]
    quiet = plan_of(pcm(channels=1), pcm(rate=96_000), stems=muted).format
    assert (quiet.sample_rate, quiet.channels) == (44_100, 1)
    assert plan_of(pcm(channels=6)).format.channels == 2
    assert plan_of(pcm(channels=6), channels=1).format.channels == 1
    assert plan_of(pcm(channels=1), stems=[{"path": "a", "pan": 0.1}]).format.channels == 2
    assert plan_of(pcm(), sample_rate=22_050).format.sample_rate == 22_050
    assert plan_of(pcm(rate=192_000), output_format="mp3").format.sample_rate == 48_000


@pytest.mark.parametrize(
    ("stems", "code"),
    [
        ([{"path": "a", "mute": True}], ErrorCode.NO_STEMS),
        ([{"path": "a", "start_s": 99}], ErrorCode.INVALID_MESSAGE),
        ([{"path": "a", "offset_s": -99}], ErrorCode.INVALID_MESSAGE),
    ],
)
def test_mixes_of_nothing_are_errors(stems: list[dict[str, object]], code: ErrorCode) -> None:
    with pytest.raises(JobError) as caught:
        plan_of(pcm(), stems=stems)
    assert caught.value.code is code


def test_a_clip_in_frames() -> None:
    """Seconds of the file in its own rate, seconds of the mix in the mix's."""
    wish = StemSpec(
        path="a", offset_s=-0.5, start_s=1, end_s=3, fade_in_s=0.25, fade_out_s=0.5, gain_db=-6
    )
    clip = clip_of(wish, 44_100, 100_000, 48_000)
    assert (clip.start, clip.stop, clip.offset) == (44_100, 100_000, -24_000)
    assert (clip.fade_in, clip.fade_out) == (12_000, 24_000)
    assert clip.length == round((100_000 - 44_100) * 48_000 / 44_100)
    assert clip.left == clip.right == pytest.approx(10 ** (-6 / 20))
    assert clip_of(wish, 44_100, None, 48_000).length is None


@given(st.floats(-1, 1))
def test_pan_has_constant_power(pan: float) -> None:
    """0 dB in the centre, exactly; everywhere the same sum of squares."""
    clip = clip_of(StemSpec(path="a", pan=pan), 44_100, None, 44_100)
    assert clip.left**2 + clip.right**2 == pytest.approx(2.0)
    assert (clip.left >= clip.right) == (pan <= 0) or clip.left == pytest.approx(clip.right)
    centre = clip_of(StemSpec(path="a"), 44_100, None, 44_100)
    assert (centre.left, centre.right) == (1.0, 1.0)


@given(st.floats(1, 8192))
def test_the_bus_cannot_overflow(weight: float) -> None:
    """All stems at the end of their headroom together fit int32, and 16 bits fit the grid."""
    bits = fraction_bits(weight)
    assert 15 <= bits <= 28
    assert weight * 8 * 2**bits <= 2**31
    assert bits == 28 or weight * 8 * 2 ** (bits + 1) > 2**31


@pytest.mark.parametrize("weight", [0, 8193])
def test_impossible_weights(weight: float) -> None:
    """No stem, or more than the bus can hold."""
    with pytest.raises(ValueError, match="8192"):
        fraction_bits(weight)
