"""What leaves the program carries a mark that is found again, and what was never marked has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csm.audio import load_audio, resample, write_audio
from csm.config import SAMPLE_RATE
from csm.speech.voices import shipped_voices
from csm.watermark import LiveMark, detect, mark, whole


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    return load_audio(shipped_voices()["slt"].path)


@pytest.fixture(scope="module")
def marked(speech: torch.Tensor) -> torch.Tensor:
    return mark(speech)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.ogg"])
def test_the_mark_is_found_in_a_written_file(tmp_path: Path, marked: torch.Tensor, name: str):
    write_audio(tmp_path / name, marked)
    found = detect(load_audio(tmp_path / name))
    assert found.marked and found.confidence > 0.9


def test_the_shipped_voices_carry_no_mark_until_they_are_marked():
    for voice in shipped_voices().values():
        wave = load_audio(voice.path)
        assert not detect(wave).marked
        assert detect(mark(wave)).confidence > 0.9


def test_the_mark_outlives_resampling_gain_and_a_cut(marked: torch.Tensor):
    for changed in (
        resample(resample(marked, SAMPLE_RATE, 16_000), 16_000, SAMPLE_RATE),
        marked * 0.3,
        marked[48_000:],
    ):
        assert detect(changed).marked


def test_marking_keeps_length_level_and_full_scale(speech: torch.Tensor, marked: torch.Tensor):
    for count in (len(speech), len(speech) - 1, 50_000, 48_000, 12_345):
        assert len(mark(speech[:count])) == count
    assert float(marked.norm() / speech.norm()) == pytest.approx(1.0, abs=0.01)
    assert float(mark(speech / speech.abs().max()).abs().max()) <= 1.0
    noise = float((marked - speech).norm() / speech.norm())
    assert noise < 0.3  # more than 10 dB below the speech


def test_long_sound_is_marked_in_pieces_as_it_is_in_one_and_hardly_more_memory_is_needed_for_it(speech, monkeypatch):
    quiet = torch.cat([speech[:50_123] * 0.1, torch.zeros(24_000), speech])  # the loudest window is in one piece
    monkeypatch.setattr(whole, "PIECE", 10**9)
    in_one = mark(quiet)
    for size in (24_000, 31_111, len(quiet) - 10):
        monkeypatch.setattr(whole, "PIECE", size)
        assert float((mark(quiet) - in_one).abs().max()) < 1e-5
    seen, see = [], whole.spectrum_of
    monkeypatch.setattr(whole, "spectrum_of", lambda wave: seen.append(len(wave)) or see(wave))
    monkeypatch.setattr(whole, "PIECE", 24_000)
    mark(quiet)
    assert max(seen) < 2 * 24_000


def test_marking_is_repeatable_and_leaves_its_input_alone(speech: torch.Tensor, marked: torch.Tensor):
    before = speech.clone()
    assert torch.equal(mark(speech), marked)
    assert torch.equal(speech, before)


@pytest.mark.parametrize("count", [0, 1, 100, 767, 769, 2_400, 12_000, 24_000])
def test_very_short_sound_is_marked_without_failing(speech: torch.Tensor, count: int):
    piece = speech[10_000 : 10_000 + count]
    short = mark(piece)
    assert short.shape == piece.shape and torch.isfinite(short).all()
    assert detect(short).confidence >= 0.0


def test_half_a_second_of_speech_is_enough_to_find_the_mark(speech: torch.Tensor):
    assert detect(mark(speech[10_000:22_000])).marked


def test_silence_has_no_mark_and_gets_none():
    silence = torch.zeros(SAMPLE_RATE)
    assert torch.equal(mark(silence), silence)
    assert detect(silence).confidence == 0.0 and not detect(silence).marked


def test_samples_that_are_no_numbers_do_not_spoil_the_rest(speech: torch.Tensor):
    broken = speech.clone()
    broken[5_000], broken[6_000] = float("nan"), float("inf")
    result = mark(broken)
    assert torch.isfinite(result).all() and detect(result).marked


def test_a_marked_passage_is_found_inside_a_longer_unmarked_recording(speech: torch.Tensor, marked: torch.Tensor):
    assert detect(torch.cat([speech.repeat(8), marked.repeat(4), speech.repeat(8)])).marked
    assert not detect(speech.repeat(8)).marked


def test_loading_the_networks_prints_nothing(speech: torch.Tensor, capsys: pytest.CaptureFixture[str]):
    from csm.watermark import networks as perth

    perth.networks.cache_clear()
    mark(speech[:24_000])
    assert capsys.readouterr().out == ""


def test_without_the_watermark_package_nothing_leaves_unmarked(speech: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    from csm.watermark import networks as perth

    monkeypatch.setattr(perth.importlib.util, "find_spec", lambda name: None)
    perth.networks.cache_clear()
    with pytest.raises(RuntimeError, match="resemble-perth"):
        mark(speech)
    perth.networks.cache_clear()


@pytest.mark.parametrize("count", [0, 700, 1_535, 1_536, 6_000, 50_001])
@pytest.mark.parametrize("pieces", [(1_920,), (1_200, 1_920, 3_840, 7_680), (97, 500, 3_000)])
def test_sound_that_is_marked_in_pieces_has_the_mark_of_the_whole(speech: torch.Tensor, count: int, pieces: tuple):
    whole, live = LiveMark(), LiveMark()
    wanted = torch.cat([whole.push(speech[:count]), whole.flush()])
    found, at, number = [], 0, 0
    while at < count:
        size = pieces[min(number, len(pieces) - 1)]
        found.append(live.push(speech[at : min(at + size, count)]))
        at, number = at + size, number + 1
    joined = torch.cat([*found, live.flush()])
    assert len(joined) == len(wanted) == count
    torch.testing.assert_close(joined, wanted, rtol=0, atol=1e-6)


def test_live_marking_is_a_fifth_of_a_second_behind(speech: torch.Tensor):
    live, ready = LiveMark(), 0
    for number, piece in enumerate(speech[:48_000].split(960), 1):
        ready += len(live.push(piece))
        assert 960 * number - ready < 0.22 * SAMPLE_RATE
