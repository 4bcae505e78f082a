"""Texts on their way to what is spoken at a stretch: cut, directed, worded."""

import re

import pytest

from csm import InputError
from csm.conversation.parsing import parse_script, read_script
from csm.utterance import LONGEST, PLAIN, Dictionary, Wording, parts
from csm.utterance.cutting import stretches


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


def said(text, wording=PLAIN):
    return [(part.text, part.pause) for part in parts(text, wording)]


@pytest.mark.parametrize(
    "text,told",
    [
        ("Hello. [pause 0.5s] World.", [("Hello.", 0.5), ("World.", 0.0)]),
        ("Hello. [Pause: 500 ms] World.", [("Hello.", 0.5), ("World.", 0.0)]),
        ('[pause 1s] Hi <break time="250ms"/>', [("", 1.0), ("Hi", 0.25)]),
        ('Wait<break strength="strong"/> now', [("Wait", 0.75), ("now", 0.0)]),
        ("One. [pause 1s] [pause 2s] Two.", [("One.", 3.0), ("Two.", 0.0)]),
        ('The <say-as interpret-as="characters">FBI-7</say-as> came.', [("The F B I dash 7 came.", 0.0)]),
        ('<speak><sub alias="World Wide Web">WWW</sub> &amp; more</speak>', [("World Wide Web & more", 0.0)]),
        (
            "I thought that you knew… but you did not know it.",
            [("I thought that you knew…", 0.3), ("but you did not know it.", 0.0)],
        ),
        ("Well… no.", [("Well… no.", 0.0)]),
        ("Is a<b and c>d?", [("Is a<b and c>d?", 0.0)]),
        ("[pause here] and [laughs]", [("[pause here] and [laughs]", 0.0)]),
        ("[pause 1s]", []),
    ],
)
def test_a_text_says_where_it_pauses_and_what_is_spelt(text, told):
    assert said(text) == told


@pytest.mark.parametrize(
    "text,why",
    [
        ("[pause 1 hour] Hi.", "may last 10 seconds"),
        ('<break time="3600s"/> Hi.', "may last 10 seconds"),
        ('<break time="soon"/> Hi.', "can't be read"),
        ('<break strength="huge"/> Hi.', "no strength “huge”"),
        ('<prosody rate="slow">Hi</prosody>', "<prosody> is not understood here"),
        ('<voice name="x">Hi</voice>', "<voice> is not understood here"),
        ('<say-as interpret-as="characters">ABC', "<say-as> is never closed"),
        ("ABC</say-as>", "</say-as> closes nothing"),
        ('<say-as interpret-as="song">ABC</say-as>', "song"),
        ("<sub>WWW</sub>", "has no alias"),
        ("x" * 1_000_000, "1,000,000 letters"),
    ],
)
def test_direction_that_cannot_be_followed_is_refused_in_one_sentence(text, why):
    with pytest.raises(InputError, match=re.escape(why)) as refusal:
        parts(text)
    assert len(str(refusal.value)) < 300 and str(refusal.value).count(". ") <= 1


def test_a_pause_on_a_line_of_its_own_comes_before_the_next_turn():
    lines = parse_script("A: Hello.\n[pause 1s]\nB: [sighs] Well. <break time='1s'/> Yes.\n[pause 2s]")
    assert [(line.speaker, line.text, line.directions) for line in lines] == [
        ("A", "Hello.", ()),
        ("B", "[pause 1s] Well. <break time='1s'/> Yes. [pause 2s]", ("sighs",)),
    ]


def test_a_document_of_ssml_is_one_voices_and_a_turn_a_paragraph():
    text = '<?xml version="1.0"?>\n<speak>\n<p>One.\n<break time="1s"/> Two.</p>\n<p>Three.</p>\n</speak>\n'
    reading = read_script(text)
    assert [(line.speaker, line.text, line.number) for line in reading.lines] == [
        ("A", 'One. <break time="1s"/> Two.', 3),
        ("A", "Three.", 5),
    ]
    with pytest.raises(InputError, match="Line 1: <speak> is never closed"):
        read_script("<speak>One.")


def test_words_of_a_dictionary_are_said_as_it_says():
    read = Dictionary.read("# towns\nŁódź = woodge\n\nsql = sequel\nNoSQL = no sql\n")
    wording = Wording(read)
    assert said("In Łódź, SQL's NoSQL.", wording) == [("In woodge, sequel's no sequel.", 0.0)]
    assert said("Use C++ and ISO C.", Wording(Dictionary.read("C++ = sea plus\nISO C = old C"))) == [
        ("Use sea plus and old C.", 0.0)
    ]
    assert said("sqlite and nosql", wording) == [("sqlite and nosql", 0.0)]
    assert Dictionary.read(read.written) == read


@pytest.mark.parametrize(
    "text,why",
    [
        ("a = b\nb = a", "Line 1 of the dictionary never ends.*“a” → “b” → “a”"),
        ("good = fine\nwhat", "Line 2 of the dictionary can't be read"),
        ("a =", "Line 1 of the dictionary can't be read"),
        ("a = <b>c</b>", "has brackets"),
        ("a = one\n\na = two", "Line 3 of the dictionary says “a” again: it stands in line 1"),
        ("a = " + "b" * 300, "longer than 200 letters"),
        ("#" * 300_000, "The dictionary is longer than 200,000 letters"),
        ("\n".join(f"w{n} = w{n + 1} w{n + 1}" for n in range(30)), "Line 1 of the dictionary (never ends|grows)"),
    ],
)
def test_a_dictionary_that_cannot_be_used_is_refused_with_its_line(text, why):
    with pytest.raises(InputError, match=why):
        Dictionary.read(text)


def test_a_short_text_is_one_part_and_a_long_one_several_that_lose_nothing():
    sentence = "The train to the coast leaves at 9.30 a.m. from platform 4, and it costs $5.30."
    assert said(sentence) == [(sentence, 0.0)]
    texts = [text for text, _ in said(" ".join([sentence] * 6))]
    assert len(texts) > 2 and max(map(len, texts)) <= LONGEST
    assert " ".join(texts) == " ".join([sentence] * 6)


def test_figures_count_as_the_words_that_they_are():
    texts = [text for text, _ in said("1,234,567,890.12 " * 11)]
    assert len(texts) > 3 and all(re.fullmatch(r"(?:1,234,567,890\.12 ?)+", text) for text in texts)


def test_texts_are_spelt_out_for_models_that_read_what_is_written_when_that_is_asked_for():
    assert said("It costs $5.30.", Wording(spelled_out=True)) == [("It costs five dollars and thirty cents.", 0.0)]
