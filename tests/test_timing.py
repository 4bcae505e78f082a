"""When each word of a turn is heard."""

from itertools import pairwise

import pytest
import torch

from csm.config import SAMPLE_RATE
from csm.listening.timing import Aligner, WordTimes, available, by_letters, sounds_of
from csm.speech.voices import load_prompt, shipped_voices

WITHOUT = WordTimes(lambda words, sound: None)


def loud(*spans: tuple[float, float], seconds: float = 2.0) -> torch.Tensor:
    """Noise in these seconds, and silence elsewhere."""
    wave = torch.zeros(int(seconds * SAMPLE_RATE))
    for start, end in spans:
        wave[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] = 0.3
    return wave


def test_without_an_aligner_words_share_what_sounds_by_their_letters():
    (first, second) = by_letters(["three", "three"], loud((0.5, 1.0), (1.5, 2.0)))
    assert first == pytest.approx((0.5, 1.5), abs=0.02) and second == pytest.approx((1.5, 2.0), abs=0.02)


@pytest.mark.parametrize("text", ["Dr. Brown paid $5, didn't he?", "Well — yes.", "Hello"])
def test_words_are_shown_as_written_in_order_within_the_sound(text):
    found = WITHOUT.find(text, loud((0.1, 1.9)))
    assert [word.word for word in found] == [token for token in text.split() if any(map(str.isalnum, token))]
    ends = [0.0] + [second for word in found for second in (word.start, word.end)] + [2.0]
    assert ends == sorted(ends)


def test_what_is_written_in_one_way_and_said_in_another_is_shown_as_said():
    said = [word.word for word in WITHOUT.find("It is 3.5 km.", loud((0.1, 1.9)))]
    assert said[:5] == ["it", "is", "three", "point", "five"]


def test_what_is_silent_or_empty_has_no_trouble():
    assert not WITHOUT.find("Hello.", torch.zeros(0)) and not WITHOUT.find("…", loud((0, 1)))
    assert len(WITHOUT.find("Hello there.", torch.zeros(SAMPLE_RATE))) == 2


def test_a_word_that_no_dictionary_has_is_spelled_out():
    assert sounds_of("shigh") == "SH AY" and sounds_of("7") == "AH"


@pytest.mark.skipif(not available(), reason="PocketSphinx is not installed: pip install pocketsphinx")
def test_the_aligner_finds_every_word_of_a_recording_and_where_its_pause_is():
    voice = shipped_voices()["bdl"]  # two sentences with a pause between them
    sound, align = load_prompt(voice), Aligner()
    found = WordTimes(align).find(voice.transcript, sound)
    assert [word.word for word in found] == voice.transcript.split()
    length, before, after = max(((b.start - a.end, a, b) for a, b in pairwise(found)), key=lambda gap: gap[0])
    pause = sound[int(before.end * SAMPLE_RATE) : int(after.start * SAMPLE_RATE)]
    assert length > 0.1 and before.word.endswith(".")
    assert float(pause.square().mean()) < 0.01 * float(sound.square().mean())
    assert align(["zyxqua"], sound[: SAMPLE_RATE // 20]) in (None, [(0.0, 0.05)])
