"""The demo's page: complete, self-contained, safe against what it shows."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from waveflow_ray.local.page import DemoReport, TrackView, encode_mp3, write_page

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(1)>&[[data]]'


class Outline(HTMLParser):
    """What a browser would build: the elements, their attributes and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        found = [attrs for name, attrs in self.elements if name == tag]
        return [attrs for attrs in found if kind in (attrs.get("class") or "").split() or not kind]


def embedded(page: str) -> list[dict]:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    return json.loads(data[1])


def tone(path: Path, rate: int = 44100, channels: int = 2) -> Path:
    t = np.arange(rate) / rate
    sf.write(path, np.repeat(0.5 * np.sin(2 * np.pi * 440 * t)[:, None], channels, axis=1), rate)
    return path


@pytest.fixture
def report(tmp_path: Path) -> DemoReport:
    drums = TrackView(
        name="drums",
        encoding="WAV 24-bit",
        audio=tone(tmp_path / "drums.wav"),
        outcome="analysed",
        note="",
        sha256="0123456789abcdef" * 4,
        duration_s=1.0,
        peaks=[0.0, 0.25, 0.5, 0.125],
        stages_s={"download": 0.012, "peaks": 0.1404},
    )
    copy = dataclasses.replace(
        drums, name="copy", audio=None, peaks=None, outcome="duplicate", note="Exact copy of drums"
    )
    broken = TrackView("notes", "text", None, "failed", "Not audio.", None, None, None, {})
    mix = dataclasses.replace(
        drums, name="Mix", audio=tone(tmp_path / "mix.wav"), outcome="mixed", stages_s={"mix": 0.5}
    )
    checks = [("The copy was deleted", True), ("Nothing failed", False)]
    return DemoReport("A song", "Three tracks.", mix, [drums, copy, broken], 2.34, checks)


def written(tmp_path: Path, report: DemoReport) -> str:
    path = tmp_path / "page.html"
    write_page(path, report)
    return path.read_text(encoding="utf-8")


def test_every_track_shows_what_the_service_made_of_it(tmp_path: Path, report: DemoReport) -> None:
    text = Outline(written(tmp_path, report)).text
    for view in [report.mix, *report.tracks]:
        assert view.name in text
        assert view.encoding in text
        assert view.note in text
    for shown in ("A song", "Three tracks.", "0123456789ab", "0:01", "download 12 ms", "140 ms",
                  "duplicate deleted", "1 of 2 expectations held", "2.3 s",
                  "Not held: Nothing failed"):  # fmt: skip
        assert shown in text
    assert "0123456789abc" not in text


def test_what_has_no_audio_cannot_be_played(tmp_path: Path, report: DemoReport) -> None:
    outline = Outline(written(tmp_path, report))
    buttons = outline.all("button", "play")
    assert ["disabled" in button for button in buttons] == [False, False, True, True]
    assert [button["aria-label"] for button in buttons][:2] == ["Play Mix", "Play drums"]
    assert len([wave for wave in outline.all("div", "wave") if wave.get("role") == "slider"]) == 2


def test_the_audio_in_the_page_is_playable_mp3(tmp_path: Path, report: DemoReport) -> None:
    tracks = embedded(written(tmp_path, report))
    assert [track["audio"] is not None for track in tracks] == [True, True, False, False]
    for track, channels in zip(tracks, (2, 1), strict=False):  # the mix in stereo, stems in mono
        encoded = io.BytesIO(base64.b64decode(track["audio"]))
        assert sf.info(encoded).format == "MP3"
        encoded.seek(0)
        samples, rate = sf.read(encoded, always_2d=True)
        assert samples.shape[1] == channels
        assert len(samples) / rate == pytest.approx(1.0, abs=0.05)
        # RMS of a sine at 0.5 is 0.354; a lossy codec keeps it within 1 dB.
        assert samples.std() == pytest.approx(0.354, rel=0.12)


def test_the_peaks_fill_the_row_in_proportion(tmp_path: Path, report: DemoReport) -> None:
    assert embedded(written(tmp_path, report))[1]["peaks"] == [0, 128, 255, 64]


@pytest.mark.parametrize("peaks", [[], [0.0, 0.0], [float("nan"), 2.0], np.zeros(4)])
def test_odd_peaks_are_drawn_or_left_out(tmp_path: Path, report: DemoReport, peaks: list) -> None:
    odd = dataclasses.replace(report.tracks[0], peaks=peaks, audio=None)
    drawn = embedded(written(tmp_path, dataclasses.replace(report, tracks=[odd])))[1]["peaks"]
    assert drawn is None or all(0 <= peak <= 255 for peak in drawn)


def test_hostile_text_stays_text(tmp_path: Path, report: DemoReport) -> None:
    hostile = dataclasses.replace(
        report.tracks[0],
        name=HOSTILE,
        encoding=HOSTILE,
        note=HOSTILE,
        sha256='"><script>',
        outcome=HOSTILE,
        stages_s={HOSTILE: 0.1},
    )
    page = written(
        tmp_path,
        DemoReport(HOSTILE, HOSTILE, hostile, [hostile], 1.0, [(HOSTILE, True)]),
    )
    outline = Outline(page)
    assert len(outline.all("script")) == 2
    assert outline.all("img") == []
    assert [row["data-name"] for row in outline.all("article")] == [HOSTILE, HOSTILE]
    assert outline.text.count(HOSTILE) >= 10
    assert len(embedded(page)) == 2


def test_the_page_asks_the_network_for_nothing(tmp_path: Path, report: DemoReport) -> None:
    page = written(tmp_path, report)
    assert not re.search(r"https?://|@import|url\(", page)
    for _, attrs in Outline(page).elements:
        assert "src" not in attrs
        assert (attrs.get("href") or "data:").startswith("data:")


@pytest.mark.parametrize(("rate", "expected"), [(8000, 8000), (48000, 48000), (96000, 48000)])
def test_any_common_sample_rate_becomes_mp3(tmp_path: Path, rate: int, expected: int) -> None:
    encoded = encode_mp3(tone(tmp_path / "tone.wav", rate, channels=1), mono=False)
    info = sf.info(io.BytesIO(encoded))
    assert (info.samplerate, info.channels) == (expected, 1)
    assert info.duration == pytest.approx(1.0, abs=0.15)
