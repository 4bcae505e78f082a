"""What the program hears: each defect of a recording is found and named, good ones pass, marks are found where they
are."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache

import pytest
import torch

from csm.audio import load_audio, resample, write_audio
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.listening import prompt as checking
from csm.listening import recogniser as recognisers
from csm.listening.library import cut
from csm.listening.marks import Passage, joined, listen, verdict
from csm.listening.prompt import Ears, check_prompt, write_down
from csm.listening.speakers import SpeakerSimilarity
from csm.listening.speech import detector, sounding_edges
from csm.listening.words import Difference, differences, letters_apart
from csm.speech.voices import Voice, shipped_voices
from csm.watermark import mark

VOICES = list(shipped_voices().values())
WOMAN, MAN = VOICES[0], VOICES[1]
SAID = "My neighbour keeps three hens in the garden. Every morning they wake the whole street."

needs_recogniser = pytest.mark.skipif(not recognisers.available(), reason="no recogniser is installed")
needs_detector = pytest.mark.skipif(detector() is None, reason="silero-vad is not installed")


@lru_cache(maxsize=1)
def ears() -> Ears:
    """All that is installed here."""
    return checking.LazyEars().get()


def speech(voice: Voice = WOMAN) -> torch.Tensor:
    return load_audio(voice.path)


def noise(length: int, seed: int = 0) -> torch.Tensor:
    """White noise with a mean power of 1."""
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


def under(wave: torch.Tensor, sound: torch.Tensor, decibels: float) -> torch.Tensor:
    """`wave` with `sound` mixed in, so many dB below it."""
    gain = wave.square().mean().sqrt() / sound.square().mean().sqrt() * 10 ** (-decibels / 20)
    return wave + gain * sound[: len(wave)]


def music(length: int) -> torch.Tensor:
    """Notes with four overtones that ring over each other, four a second."""
    time = torch.arange(length) / SAMPLE_RATE
    made = torch.zeros(length)
    scale = (261.6, 329.6, 392.0, 523.3, 440.0, 349.2)
    for number, at in enumerate(range(0, length, SAMPLE_RATE // 4)):
        since = time[at : at + SAMPLE_RATE // 2] - time[at]
        for pitch in (scale[number % 6], scale[(number * 5 + 2) % 6] / 2):
            tones = sum(torch.sin(2 * torch.pi * pitch * n * since) / n for n in range(1, 6))
            made[at : at + SAMPLE_RATE // 2] += tones * torch.exp(-4 * since)
    return made


def echoing(wave: torch.Tensor, seconds: float) -> torch.Tensor:
    """In a room whose echo fades by 60 dB in so many seconds."""
    length = int(seconds * SAMPLE_RATE)
    tail = noise(length) * torch.exp(-6.9 * torch.arange(length) / length)
    room = 0.7 * tail / tail.norm()
    room[0] += 0.7
    size = len(wave) + length
    heard = torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(room, size), size)[: len(wave)]
    return 0.7 * heard / heard.abs().max()


def overdriven(wave: torch.Tensor, decibels: float) -> torch.Tensor:
    return (wave / wave.abs().max() * 10 ** (decibels / 20)).clamp(-1, 1)


def kinds(wave: torch.Tensor, transcript: str = "", **helpers) -> list[str]:
    found = check_prompt(wave, transcript, **helpers)
    assert all(one.sentence.endswith(".") and len(one.sentence) < 260 for one in found)
    return [one.kind for one in found]


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_a_shipped_voice_has_no_fault(voice):
    helpers = ears()
    found = check_prompt(load_audio(voice.path), voice.transcript, helpers.recogniser, helpers.speakers, helpers.speech)
    assert found == []


def test_other_synthetic_voices_have_no_fault(tmp_path):
    flite, espeak = shutil.which("flite"), shutil.which("espeak-ng")
    if not (flite or espeak):
        pytest.skip("neither Flite nor eSpeak NG is installed")
    for name, command in {
        "kal": flite and [flite, "-voice", "kal16", "-t", SAID, "-o"],
        "espeak": espeak and [espeak, "-v", "en-gb", SAID, "-w"],
    }.items():
        if command:
            path = tmp_path / f"{name}.wav"
            subprocess.run([*command, str(path)], check=True)
            assert kinds(load_audio(path), SAID, recogniser=ears().recogniser, speech=ears().speech) == []


def test_a_silent_recording_is_refused():
    for wave in (torch.zeros(0), torch.zeros(SAMPLE_RATE * 3), 1e-3 * noise(SAMPLE_RATE * 3)):
        found = check_prompt(wave, SAID)
        assert [(one.kind, one.refused) for one in found] == [("silent", True)]


def test_a_quiet_recording_is_named():
    assert kinds(0.05 * speech(WOMAN)) == ["quiet"]


def test_a_long_recording_is_refused_and_a_short_one_too():
    wave = speech()
    for part, refused in ((wave.repeat(6)[: 31 * SAMPLE_RATE], True), (wave[: SAMPLE_RATE // 2], True)):
        found = check_prompt(part, "")
        assert found[0].kind in ("too long", "too short") and found[0].refused is refused
    found = check_prompt(wave[: 2 * SAMPLE_RATE], "")
    assert [(one.kind, one.refused) for one in found] == [("too short", False)]


@pytest.mark.parametrize("voice", (WOMAN, MAN), ids=lambda voice: voice.name)
def test_a_clipped_recording_is_named_even_after_resampling(voice):
    clipped = overdriven(speech(voice), 6)
    assert "clipped" in kinds(clipped)
    slower = resample(overdriven(resample(speech(voice), SAMPLE_RATE, 16_000), 12), 16_000, SAMPLE_RATE)
    assert "clipped" in kinds(slower / slower.abs().max())


@pytest.mark.parametrize("voice", (WOMAN, MAN), ids=lambda voice: voice.name)
@pytest.mark.parametrize("decibels", (5, 12))
def test_noise_is_named_as_noise_and_music_and_hum_as_background(voice, decibels):
    wave = speech(voice)
    time = torch.arange(len(wave)) / SAMPLE_RATE
    hum = sum(torch.sin(2 * torch.pi * 60 * n * time + n) / n for n in range(1, 8))
    assert kinds(under(wave, noise(len(wave)), decibels)) == ["noisy"]
    assert kinds(under(wave, music(len(wave)), decibels)) == ["background"]
    assert kinds(under(wave, hum, decibels)) == ["background"]


def test_a_little_noise_is_no_fault():
    assert kinds(under(speech(), noise(len(speech())), 25)) == []


@pytest.mark.parametrize("voice", (WOMAN, MAN), ids=lambda voice: voice.name)
def test_an_echoing_room_is_named_and_a_furnished_one_is_not(voice):
    assert kinds(echoing(speech(voice), 0.6)) == ["echo"]
    assert "echo" not in kinds(echoing(speech(voice), 0.2))


def test_two_speakers_are_named_and_one_is_not():
    try:
        speakers = SpeakerSimilarity()
    except InputError:
        pytest.skip("Resemblyzer is not installed")
    half = 3 * SAMPLE_RATE
    both = torch.cat([speech(WOMAN)[:half], speech(MAN)[:half]])
    assert kinds(both, speakers=speakers) == ["two speakers"]
    assert kinds(torch.cat([speech(MAN), speech(MAN)]), speakers=speakers) == []


@needs_detector
@pytest.mark.parametrize("sound", (music(5 * SAMPLE_RATE) * 0.1, noise(5 * SAMPLE_RATE) * 0.1), ids=("music", "noise"))
def test_what_is_not_speech_is_named(sound):
    assert kinds(sound, speech=detector()) == ["not speech"]


def test_a_steady_tone_is_not_speech_even_without_a_detector():
    tone = 0.3 * torch.sin(torch.arange(4 * SAMPLE_RATE) / SAMPLE_RATE * 2_765)
    assert "not speech" in kinds(tone)


@needs_recogniser
def test_a_wrong_transcript_is_named_with_the_words_that_differ():
    recogniser = ears().recogniser
    wrong = check_prompt(speech(WOMAN), MAN.transcript, recogniser)
    assert [one.kind for one in wrong] == ["transcript"] and "is heard" in wrong[0].sentence
    half = WOMAN.transcript.split(". ")[0] + "."
    missing = check_prompt(speech(WOMAN), half, recogniser)
    assert [one.kind for one in missing] == ["transcript"] and "is heard but not written" in missing[0].sentence
    more = check_prompt(speech(WOMAN), f"{WOMAN.transcript} And then we all went home again.", recogniser)
    assert [one.kind for one in more] == ["transcript"] and "is written but not heard" in more[0].sentence


@needs_recogniser
def test_a_recording_is_written_down():
    assert letters_apart(WOMAN.transcript, write_down(speech(WOMAN), ears())) < 0.15


def test_without_a_recogniser_one_sentence_says_how_to_get_it():
    with pytest.raises(InputError, match=r"pip install .*listening"):
        write_down(speech(), Ears())
    assert "pip install" in Ears().missing and Ears().missing.count(".") == 1  # the sentence's own, and the path's
    assert Ears(object(), object(), object()).missing == ""


def test_the_sampling_rate_of_a_file_is_no_fault(tmp_path):
    path = tmp_path / "slow.flac"
    write_audio(path, resample(speech(), SAMPLE_RATE, 16_000), 16_000)
    assert kinds(load_audio(path)) == []


def test_words_heard_otherwise_are_listed_and_like_sounds_are_near():
    assert differences("We met in June.", "We met at noon.") == [Difference(("in", "june"), ("at", "noon"))]
    assert letters_apart("seabirds rested", "sea bird dressed it") < 0.35 < letters_apart("one two", "blue sky")


def test_silence_around_speech_is_found_and_cut():
    quiet = torch.zeros(SAMPLE_RATE)
    wave = speech()
    begin, end = sounding_edges(torch.cat([quiet, wave, quiet]))
    assert 0.8 < begin / SAMPLE_RATE <= 1.2 and abs(end / SAMPLE_RATE - 1 - len(wave) / SAMPLE_RATE) <= 0.3
    assert len(cut(wave, 1.0, 2.5)) == int(1.5 * SAMPLE_RATE)
    with pytest.raises(InputError, match="before the start"):
        cut(wave, 2, 1)


def test_the_marked_part_of_a_long_file_is_found():
    pytest.importorskip("perth")
    plain, marked = speech(MAN).repeat(3)[: 8 * SAMPLE_RATE], mark(speech(WOMAN).repeat(3)[: 8 * SAMPLE_RATE])
    parts = joined(list(listen(torch.cat([plain, marked, plain]))))
    assert [part.marked for part in parts] == [False, True, False]
    assert parts[1].start == pytest.approx(8, abs=0.1) and parts[1].end == pytest.approx(16, abs=0.1)
    sentence = verdict(list(parts))
    assert "in part, at 0:08 to 0:16" in sentence
    assert verdict(list(listen(marked))).startswith("It carries the watermark, all of it")
    assert verdict(list(listen(plain))).startswith("No watermark was found")


def test_the_verdict_speaks_plainly():
    assert "not quite sure" in verdict([Passage(0, 4, 0.5)])
    assert "probably" in verdict([Passage(0, 4, 0.65)])
    assert verdict([]) == "There is no sound in it."


def test_a_steady_tone_is_not_taken_for_a_mark():
    tone = 0.3 * torch.sin(torch.arange(4 * SAMPLE_RATE) / SAMPLE_RATE * 2_765)
    assert [part.marked for part in listen(tone)] == [False]
