"""The shipped voices are complete, a user's own recording is found with its transcript, and bad ones are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from csm.audio import load_audio
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.speech.voices import Voice, find_voice, load_prompt, shipped_voices
from csm.training.held_out import SENTENCES
from csm.training.prompts import PROMPTS
from csm.training.sentences import wording

FOLDER = Path(__file__).parent.parent / "prompts"


def recording(
    folder: Path, name: str = "own.wav", rate: int = SAMPLE_RATE, seconds: float = 0, gain: float = 1, **kind
):
    """A shipped prompt as a user might upload it."""
    speech = load_audio(FOLDER / "rms.wav").numpy() * gain
    if seconds:
        speech = np.resize(speech, int(seconds * SAMPLE_RATE))
    samples = soxr.resample(speech, SAMPLE_RATE, rate)
    if kind.pop("stereo", False):
        samples = np.stack([samples, 0.5 * samples], axis=1)
    soundfile.write(folder / name, samples, rate, **kind)
    return Voice("own", folder / name, "Some words.")


def level(wave: torch.Tensor) -> float:
    return float(wave.square().mean().sqrt())


def test_the_index_and_the_files_agree():
    voices = shipped_voices()
    assert len(voices) >= 5
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    assert len(voices) == len(index["voices"])
    assert {voice.licence for voice in voices.values()} <= set(index["licences"])
    assert {voice.path.name for voice in voices.values()} == {path.name for path in FOLDER.glob("*.wav")}
    for name, voice in voices.items():
        assert voice.name == name and voice.licence and voice.origin and voice.description
        assert voice.transcript and not any(character.isdigit() for character in voice.transcript)
        info = soundfile.info(voice.path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        assert 4 <= info.duration <= 7


def test_no_prompt_says_a_sentence_that_the_evaluation_asks_for():
    said = " ".join(wording(voice.transcript) for voice in shipped_voices().values())
    assert not [sentence for sentence in SENTENCES if wording(sentence) in said]


def test_the_prompts_can_be_made_again(tmp_path: Path):
    # In a process of its own: Flite's output depends a little on what it has said before.
    command = [sys.executable, "-m", "csm", "train", "prompts", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    if "Flite is missing" in done.stderr or "RHVoice is not there" in done.stderr:
        pytest.skip("Flite or RHVoice is not installed")
    assert done.returncode == 0, done.stderr
    made = sorted(tmp_path.glob("*.wav"))
    assert {path.stem for path in made} == set(PROMPTS) == set(shipped_voices())
    assert (tmp_path / "index.json").read_bytes() == (FOLDER / "index.json").read_bytes()
    for path in made:
        # Bit for bit on one machine; another build of Flite may round a sample differently.
        assert torch.allclose(load_audio(path), load_audio(FOLDER / path.name), atol=1e-3)


@pytest.mark.parametrize("name", ["slt", "SLT", " Slt "])
def test_a_shipped_voice_is_found_by_its_name(name: str):
    assert find_voice(name) == shipped_voices()["slt"]


def test_a_shipped_prompt_is_used_as_it_is():
    for voice in shipped_voices().values():
        assert torch.equal(load_prompt(voice), load_audio(voice.path))


@pytest.mark.parametrize("name", ["nobody", "", "nowhere/voice.wav", "x" * 5_000, "a\0b"])
def test_an_unknown_voice_is_refused_with_the_names_there_are(name: str):
    with pytest.raises(InputError, match="slt, bdl, clb"):
        find_voice(name)


def test_a_transcript_is_given_or_lies_beside_the_recording(tmp_path: Path):
    recording(tmp_path, "anna.wav")
    assert find_voice(str(tmp_path / "anna.wav"), "Given  words.").transcript == "Given words."
    (tmp_path / "anna.txt").write_bytes("\ufeffWords of a\r\nfile: größer.\r\n".encode())
    voice = find_voice(str(tmp_path / "anna.wav"))
    assert (voice.name, voice.transcript) == ("anna", "Words of a file: größer.")
    assert find_voice(str(tmp_path / "anna.wav"), "Given words.").transcript == "Given words."


@pytest.mark.parametrize("beside", [None, "", " \n", "..."])
def test_a_missing_transcript_is_refused_and_says_how_to_give_it(tmp_path: Path, beside: str | None):
    recording(tmp_path)
    if beside is not None:
        (tmp_path / "own.txt").write_text(beside)
    with pytest.raises(InputError, match=r"transcript of the voice own\.wav is missing.*own\.txt"):
        find_voice(str(tmp_path / "own.wav"), "" if beside else None)


def test_a_transcript_that_is_no_text_is_refused(tmp_path: Path):
    recording(tmp_path)
    (tmp_path / "own.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match="UTF-8"):
        find_voice(str(tmp_path / "own.wav"))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_prompts_of_8_to_96_khz_give_the_same_voice(tmp_path: Path, rate: int):
    wave, original = load_prompt(recording(tmp_path, rate=rate)), load_audio(FOLDER / "rms.wav")
    assert abs(len(wave) - len(original)) <= 2
    n = min(len(wave), len(original))
    assert torch.corrcoef(torch.stack([wave[:n], original[:n]]))[0, 1] > 0.97


@pytest.mark.parametrize("name", ["own.mp3", "own.ogg", "own.flac", "own.wav"])
def test_stereo_prompts_of_every_format_work(tmp_path: Path, name: str):
    wave = load_prompt(recording(tmp_path, name, 44_100, stereo=True))
    assert wave.ndim == 1 and len(wave) / SAMPLE_RATE == pytest.approx(5.83, abs=0.1)


def test_a_prompt_of_30_seconds_fits_and_a_longer_one_is_told_how_many_do(tmp_path: Path):
    assert len(load_prompt(recording(tmp_path, seconds=29.9))) > 28 * SAMPLE_RATE
    with pytest.raises(InputError, match=r"is 45\.0 s long and at most 30 s fit"):
        load_prompt(recording(tmp_path, seconds=45, rate=8_000))


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_silent_prompt_is_refused_in_one_sentence(tmp_path: Path, noise: float):
    samples = noise * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)
    soundfile.write(tmp_path / "own.wav", samples, SAMPLE_RATE)
    with pytest.raises(InputError, match=r"^The voice own\.wav is silent; [^.]+\.$"):
        load_prompt(Voice("own", tmp_path / "own.wav", "Hi."))


def test_a_prompt_that_is_too_short_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"too short with 0\.5 s"):
        load_prompt(recording(tmp_path, seconds=0.5))


def test_silence_does_not_make_a_short_prompt_long(tmp_path: Path):
    speech = load_audio(FOLDER / "slt.wav").numpy()[2_400:12_000]
    soundfile.write(tmp_path / "own.wav", np.pad(speech, 3 * SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(InputError, match="too short"):
        load_prompt(Voice("own", tmp_path / "own.wav", "Hi."))


def test_long_silence_around_the_speech_is_cut_and_short_silence_is_left(tmp_path: Path):
    speech = load_audio(FOLDER / "slt.wav").numpy()
    soundfile.write(tmp_path / "own.wav", np.pad(speech, 2 * SAMPLE_RATE), SAMPLE_RATE)
    wave = load_prompt(Voice("own", tmp_path / "own.wav", "Hi."))
    assert len(wave) / SAMPLE_RATE == pytest.approx(len(speech) / SAMPLE_RATE + 0.05, abs=0.2)
    soundfile.write(tmp_path / "own.wav", np.pad(speech, SAMPLE_RATE // 4), SAMPLE_RATE)
    assert len(load_prompt(Voice("own", tmp_path / "own.wav", "Hi."))) == len(speech) + SAMPLE_RATE // 2


def test_a_faint_recording_is_brought_to_the_level_of_the_shipped_voices(tmp_path: Path):
    original = level(load_audio(FOLDER / "rms.wav"))
    assert level(load_prompt(recording(tmp_path, gain=0.05))) == pytest.approx(0.071, rel=0.1)
    assert level(load_prompt(recording(tmp_path, gain=0.5))) == pytest.approx(original / 2, rel=0.01)


def test_a_text_file_named_wav_is_refused(tmp_path: Path):
    (tmp_path / "own.wav").write_text("not audio")
    with pytest.raises(InputError, match="not audio that can be read"):
        load_prompt(Voice("own", tmp_path / "own.wav", "Hi."))
