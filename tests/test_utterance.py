"""Running text, cut into sentences that are read aloud."""

import re

import pytest

from csm.utterance.cutting import LONGEST, stretches


def test_text_is_cut_at_sentences_and_not_at_abbreviations_or_decimals():
    text = "It costs 3.50 at Dr. Brown's shop today. “Really, that much?” asked J. Miller. We all laughed."
    assert stretches(text) == [
        "It costs 3.50 at Dr. Brown's shop today.",
        "“Really, that much?” asked J. Miller. We all laughed.",
    ]


def test_short_sentences_are_joined_and_paragraphs_end_sentences():
    assert stretches("Hi. Oh. Well, good morning!\nA heading without a stop\nThe text below it goes on.") == [
        "Hi. Oh. Well, good morning!",
        "A heading without a stop",
        "The text below it goes on.",
    ]


@pytest.mark.parametrize("text", ["one two, " * 100, "word " * 200, "x" * 900])
def test_no_piece_is_longer_than_a_turn_may_be_and_nothing_is_lost(text):
    pieces = stretches(text)
    assert all(0 < len(piece) <= LONGEST for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", " \n ", "--- … !"])
def test_text_without_words_gives_nothing(text):
    assert stretches(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Smith works for the C.I.A., and Ms. Johnson works for the D.E.A. as a secretary.",
        "She went to the U.S. Capitol at 9:30 a.m. sharp to see Sen. Lee.",
        "On Jan. 3rd, Gen. Grant met Prof. J. R. Brown at Acme Inc. in St. Paul.",
        "See No. 5 and fig. 3 of vol. 2, i.e. pp. 5 to 9, for 3.5 reasons vs. none.",
    ],
)
def test_no_cut_is_behind_an_abbreviation(text):
    assert stretches(text) == [text]


def test_a_sentence_may_end_with_an_abbreviation():
    text = "We left the house at about 9 a.m. Then we drove all the way to the U.S. It was a long day."
    assert stretches(text) == [
        "We left the house at about 9 a.m.",
        "Then we drove all the way to the U.S. It was a long day.",
    ]


def test_long_sentences_are_cut_at_clauses_and_never_inside_a_number_or_an_amount():
    text = " ".join(["the long road of 1 000 000 miles cost $5.3 million on March 14, 2024 when Dr. Lee left"] * 12)
    pieces = stretches(text)
    assert " ".join(pieces) == text and len(pieces) > 4
    assert not [piece for piece in pieces if re.search(r"^(?:\d|million)|(?:March|\d \d+|\.)$", piece)]
