"""`waveflow mix` and `waveflow enqueue mix`: what they take, show and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from waveflow_ray.cli import app

SECONDS = 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stems")
    rng = np.random.default_rng(1)
    for name, rate in (("a.wav", 48000), ("b.wav", 48000), ("c.flac", 44100)):
        soundfile.write(folder / name, rng.uniform(-0.4, 0.4, (rate * SECONDS, 2)), rate)
    return folder


def waveflow(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def facts_of(*arguments: object) -> dict[str, Any]:
    result = waveflow(*arguments, "--json")
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_options_reach_the_mix(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.flac"
    options = ["--normalization", "loudness", "--target-lufs", -20, "--bit-depth", 24]
    facts = facts_of("mix", folder / "a.wav", folder / "c.flac", "-o", out, *options)
    assert facts["integrated_lufs"] == pytest.approx(-20, abs=0.05)
    info = soundfile.info(out)
    assert (info.format, info.subtype, info.samplerate) == ("FLAC", "PCM_24", 48000)
    assert [stem["sample_rate"] for stem in facts["stems"]] == [48000, 44100]


def test_a_spec_is_a_mix_message(folder: Path, tmp_path: Path) -> None:
    """Options are stronger than what is in it."""
    spec = tmp_path / "song.json"
    stems = [
        {"path": str(folder / "a.wav"), "end_s": 2},
        {"path": str(folder / "b.wav"), "mute": True},
    ]
    spec.write_text(json.dumps({"stems": stems, "normalization": "none", "sample_rate": 8000}))
    out = tmp_path / "mix.wav"
    facts = facts_of("mix", "--spec", spec, "-o", out, "--sample-rate", 48000)
    mixed, _ = soundfile.read(out)
    stem, _ = soundfile.read(folder / "a.wav", stop=2 * 48000)
    assert np.array_equal(mixed, stem)
    assert (facts["duration"], facts["applied_gain_db"]) == (2.0, 0.0)


def test_people_see_levels_and_progress(folder: Path, tmp_path: Path) -> None:
    result = waveflow("mix", folder / "a.wav", "-o", tmp_path / "mix.wav", "--progress")
    assert result.exit_code == 0
    assert "1 stem, 15.00 s, 48000 Hz, 2 ch" in result.stdout
    assert "LUFS" in result.stdout
    assert "100%" in result.stderr
    assert "100%" not in result.stdout


def test_the_plan_says_what_a_cluster_would_do(folder: Path) -> None:
    """By range in windows, from the start in groups; and why."""
    paths = [folder / name for name in ("a.wav", "b.wav", "c.flac")]
    columns, rows = facts_of("mix", *paths, "--plan", "--cpus", 8)["cells"]
    assert (columns["stems"], columns["stems_per_cell"]) == (2, 2)
    assert columns["cells"] == -(-SECONDS * 48000 // 2**19)
    assert (rows["stems"], rows["cells"]) == (1, 1)
    shown = waveflow("mix", *paths, "--plan", "--cpus", 8)
    assert "a window, by byte range" in shown.stdout
    assert "a group, from start" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.wav"], "--output"),
        (["-o", "m.wav"], "stems"),
        (["a.wav", "-o", "m.aac"], "output_format"),
        (["a.wav", "-o", "m.mp3", "--bit-depth", "24"], "bit_depth"),
        (["a.wav", "-o", "m.wav", "--normalization", "loud"], "normalization"),
        (["--spec", "a.wav", "-o", "m.wav"], "a.wav"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = waveflow("mix", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not list(folder.glob("m.*"))


def test_enqueue_makes_the_message(tmp_path: Path) -> None:
    spec = tmp_path / "song.json"
    spec.write_text(json.dumps({"stems": [{"path": "a.wav", "pan": -1}], "dither": True}))
    result = waveflow(
        "enqueue", "mix", "--stage-id", "st", "--spec", spec, "--bit-depth", 24, "--dry-run"
    )
    message = json.loads(result.stdout)
    assert message["task"] == "app.tasks.mix_stems_and_upload"
    wanted = {"stems": [{"path": "a.wav", "pan": -1}], "dither": True, "bit_depth": 24}
    assert wanted.items() <= message["kwargs"].items()


def test_enqueue_refuses_what_the_service_would(tmp_path: Path) -> None:
    result = waveflow("enqueue", "mix", "a.wav", "--bit-depth", 20, "--dry-run")
    assert result.exit_code == 2
    assert "bit_depth" in result.stderr
    assert "no stems" in waveflow("enqueue", "mix", "--dry-run").stderr
