"""Running text, cut into sentences that are read aloud."""

import pytest

from csm.conversation.reading import LONGEST, sentences


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
