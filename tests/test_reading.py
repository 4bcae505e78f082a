"""Running text read aloud: how it is cut into sentences, and that any length of it is spoken by one voice."""

import pytest
import torch

from csm.config import FRAME_SIZE
from csm.errors import InputError
from csm.reading import LONGEST, read_aloud, sentences
from csm.settings import Settings
from csm.voices import find_voice
from csm.watermark import LiveMark
from tests.small import small_generator

VOICE = find_voice("slt")


def settings(seconds: float = 0.4) -> Settings:
    return Settings(seed=3, max_turn_seconds=seconds)


def test_text_is_cut_at_sentences_and_not_at_abbreviations_or_decimals():
    text = "It costs 3.50 at Dr. Brown's shop today. “Really, that much?” asked J. Miller. We all laughed."
    assert sentences(text) == [
        "It costs 3.50 at Dr. Brown's shop today.",
        "“Really, that much?” asked J. Miller. We all laughed.",
    ]


def test_short_sentences_are_joined_and_paragraphs_end_sentences():
    assert sentences("Hi. Oh. Well, good morning!\nA heading without a stop\nThe text below it goes on.") == [
        "Hi. Oh. Well, good morning!",
        "A heading without a stop",
        "The text below it goes on.",
    ]


@pytest.mark.parametrize("text", ["one two, " * 100, "word " * 200, "x" * 900])
def test_no_piece_is_longer_than_a_turn_may_be_and_nothing_is_lost(text):
    pieces = sentences(text)
    assert all(0 < len(piece) <= LONGEST for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", " \n ", "--- … !"])
def test_text_without_words_gives_nothing(text):
    assert sentences(text) == []


@pytest.fixture(scope="module")
def generator():
    return small_generator(max_positions=400)


def test_a_reading_is_one_marked_sound_of_all_sentences(generator):
    texts = ["Good morning to you.", "The rain has stopped."]
    pieces = list(read_aloud(generator, texts, VOICE, settings()))
    assert [pieces[0].index, pieces[-1].index, pieces[-1].total] == [0, 1, 2]
    assert pieces[-1].frames == 10  # 0.4 s for each
    sound = torch.cat([piece.wave for piece in pieces])
    assert len(sound) == 10 * FRAME_SIZE
    conversation = generator.conversation([], 3)
    assert pieces[-1].text_positions == sum(len(generator.turn_rows(text, 0)) for text in texts)
    assert conversation.positions_used == 0
    unmarked = _unmarked(generator, texts)
    live = LiveMark()
    assert torch.allclose(sound, torch.cat([live.push(unmarked), live.flush()]), atol=1e-4)


def _unmarked(generator, texts):
    from csm.frames import Segment
    from csm.voices import load_prompt

    conversation = generator.conversation([Segment(0, VOICE.transcript, load_prompt(VOICE))], 3)
    return torch.cat([conversation.say(text, 0, 400, 0.9, 50, seed=3 + n).audio for n, text in enumerate(texts)])


def test_text_beyond_the_position_budget_is_read_to_its_end(generator):
    numbers = "one two three four five six seven eight nine ten eleven twelve".split()
    texts = [f"This is sentence number {number}." for number in numbers]
    needed = sum(len(generator.turn_rows(text, 0)) + 5 for text in texts)
    assert needed > generator.config.max_positions
    pieces = list(read_aloud(generator, texts, VOICE, settings()))
    assert {piece.index for piece in pieces} >= {0, 11} and pieces[-1].frames == 60


def test_a_reading_stops_at_the_next_frame_when_it_is_asked_to(generator):
    heard = []
    for piece in read_aloud(generator, ["Good morning to you."] * 3, VOICE, settings(2), stop=lambda: len(heard) > 0):
        heard.append(piece)
    assert heard[-1].index == 0 and 0 < heard[-1].frames < 25


def test_a_text_that_cannot_be_spoken_is_refused_before_any_sound(generator):
    with pytest.raises(InputError, match="nothing to say"):
        next(read_aloud(generator, ["Hello there.", "…"], VOICE, settings()))
