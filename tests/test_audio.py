"""Audio files of any common kind come in as 24 kHz mono, and go out whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from csm import audio
from csm.audio import check_output, inspect_audio, load_audio, resample, write_audio
from csm.config import SAMPLE_RATE
from csm.errors import InputError


def tone(seconds: float = 1.0, rate: int = SAMPLE_RATE, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def pitch_of(wave: torch.Tensor) -> float:
    return float(torch.fft.rfft(wave).abs().argmax()) * SAMPLE_RATE / len(wave)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_any_rate_becomes_24_khz_without_changing_pitch_or_length(tmp_path: Path, rate: int):
    soundfile.write(tmp_path / "tone.wav", tone(2.0, rate), rate)
    wave = load_audio(tmp_path / "tone.wav")
    assert wave.dtype == torch.float32 and wave.ndim == 1
    assert abs(len(wave) - 2 * SAMPLE_RATE) <= 2
    assert pitch_of(wave) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("name", ["tone.wav", "tone.flac", "tone.mp3", "tone.ogg", "TONE.WAV"])
def test_every_format_that_is_written_can_be_read_back(tmp_path: Path, name: str):
    write_audio(tmp_path / name, torch.from_numpy(tone()))
    wave = load_audio(tmp_path / name)
    assert abs(len(wave) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    assert pitch_of(wave) == pytest.approx(440, abs=2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_wav_is_written_with_16_bits_at_24_khz_and_keeps_every_sample(tmp_path: Path):
    write_audio(tmp_path / "a.wav", torch.from_numpy(tone()))
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.subtype, info.samplerate, info.channels, info.frames) == ("PCM_16", SAMPLE_RATE, 1, SAMPLE_RATE)
    assert torch.allclose(load_audio(tmp_path / "a.wav"), torch.from_numpy(tone()), atol=1 / 32_000)


def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path: Path):
    write_audio(tmp_path / "loud.wav", torch.tensor([2.0, -3.0, float("nan"), 0.5]))
    assert load_audio(tmp_path / "loud.wav").tolist() == pytest.approx([1.0, -1.0, 0.0, 0.5], abs=1e-4)


def test_stereo_is_averaged(tmp_path: Path):
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone(), np.zeros_like(tone())], axis=1), SAMPLE_RATE)
    assert torch.allclose(load_audio(tmp_path / "stereo.wav"), torch.from_numpy(tone() / 2), atol=1e-3)


def test_samples_that_are_no_numbers_count_as_silence(tmp_path: Path):
    broken = tone()
    broken[100:200], broken[300] = np.nan, np.inf
    soundfile.write(tmp_path / "broken.wav", broken, SAMPLE_RATE, subtype="FLOAT")
    wave = load_audio(tmp_path / "broken.wav")
    assert torch.isfinite(wave).all() and float(wave.abs().max()) <= 1.0


def test_a_float_file_beyond_full_scale_is_turned_down(tmp_path: Path):
    soundfile.write(tmp_path / "loud.wav", tone() * 100, SAMPLE_RATE, subtype="FLOAT")
    assert float(load_audio(tmp_path / "loud.wav").abs().max()) == pytest.approx(1.0)


def test_only_the_beginning_of_a_long_file_is_decoded(tmp_path: Path):
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 8_000, 1) as file:
        for _ in range(600):
            file.write(np.zeros(8_000, np.float32))
    assert inspect_audio(tmp_path / "long.wav").seconds == pytest.approx(600)
    assert len(load_audio(tmp_path / "long.wav", max_seconds=2)) == pytest.approx(2 * SAMPLE_RATE, abs=2)


@pytest.mark.parametrize("content", [b"", b"just some text\n" * 100, b"RIFF\x00\x00", bytes(range(256)) * 20])
@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".raw", ""])
def test_a_file_that_is_not_audio_is_refused_in_one_sentence(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"voice{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^voice\S* is not audio that can be read; use WAV, FLAC, OGG or MP3\.$"):
        load_audio(path)


def test_audio_without_samples_is_refused(tmp_path: Path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), SAMPLE_RATE)
    with pytest.raises(InputError, match="holds no sound"):
        load_audio(tmp_path / "empty.wav")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no audio file"):
        load_audio(tmp_path / "nowhere.wav")
    with pytest.raises(InputError, match="no audio file"):
        load_audio("x" * 5_000)
    with pytest.raises(InputError, match="is a folder"):
        load_audio(tmp_path)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.m4a", "missing/a.wav"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name: str):
    for attempt in (check_output, lambda path: write_audio(path, torch.zeros(10))):
        with pytest.raises(InputError):
            attempt(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_audio(tmp_path / "a.wav", torch.from_numpy(tone()))
    before = (tmp_path / "a.wav").read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full_disk)
    with pytest.raises(InputError, match="can't be written"):
        write_audio(tmp_path / "a.wav", torch.zeros(10))
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_resampling_to_the_same_rate_changes_nothing():
    wave = torch.from_numpy(tone())
    assert torch.equal(resample(wave, SAMPLE_RATE, SAMPLE_RATE), wave)


FOREIGN = {
    "a rate of 1 Hz": (1, 1, 30_000),
    "655 350 Hz of eight channels": (655_350, 8, 1_000),
    "seventeen channels": (24_000, 17, 1_000),
}


@pytest.mark.parametrize("rate, channels, samples", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_claims_what_no_recorder_writes_is_refused_by_its_header(tmp_path, rate, channels, samples):
    soundfile.write(tmp_path / "odd.wav", np.zeros((samples, channels), np.float32), rate)
    with pytest.raises(InputError, match="channels of"):
        load_audio(tmp_path / "odd.wav")


def test_more_sound_than_is_read_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.flac", np.zeros((24_000 * 4, 2), np.float32), SAMPLE_RATE)
    monkeypatch.setattr(audio, "MOST_SAMPLES", 24_000 * 6)
    with pytest.raises(InputError, match="more sound than is read"):
        load_audio(tmp_path / "long.flac")
    assert len(load_audio(tmp_path / "long.flac", 3.0)) == 3 * SAMPLE_RATE
    monkeypatch.setattr(audio, "LONGEST_SOUND", 2.0)
    with pytest.raises(InputError, match="more sound than is read"):
        load_audio(tmp_path / "long.flac")


def test_long_sound_is_resampled_as_it_is_read_and_sounds_the_same(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "tone.wav", np.stack([tone(3.0, 44_100)] * 2, axis=1), 44_100)
    at_once = load_audio(tmp_path / "tone.wav")
    monkeypatch.setattr(audio, "LONGEST_AT_ONCE", 0)
    monkeypatch.setattr(audio, "BLOCK", 10_000)
    in_pieces = load_audio(tmp_path / "tone.wav")
    assert abs(len(in_pieces) - len(at_once)) <= 2
    same = min(len(in_pieces), len(at_once))
    assert torch.allclose(in_pieces[:same], at_once[:same], atol=1e-3)
