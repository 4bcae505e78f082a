"""What a script may look like, and what is said when it can't be used."""

from __future__ import annotations

import pytest

from csm.conversation.parsing import Line, parse_script, speakers
from csm.errors import InputError


def said(script: str) -> list[tuple[str, str]]:
    return [(line.speaker, line.text) for line in parse_script(script)]


def test_labelled_lines_become_turns_in_order():
    script = "A: Hi there.\nB: Hello.\nA: How are you?"
    assert parse_script(script) == [Line("A", "Hi there.", 1), Line("B", "Hello.", 2), Line("A", "How are you?", 3)]


def test_names_may_have_spaces_digits_and_accents():
    assert said("Old Man 2: Hi.\nJosé-Luis: Hola.\nDr. Who: Hm?") == [
        ("Old Man 2", "Hi."),
        ("José-Luis", "Hola."),
        ("Dr. Who", "Hm?"),
    ]


def test_bare_lines_alternate_between_a_and_b():
    assert said("Hi.\nHello.\n\nBye.") == [("A", "Hi."), ("B", "Hello."), ("A", "Bye.")]


def test_a_bare_line_goes_to_the_speaker_after_the_last_one():
    assert said("Anna: One.\nTwo.\nBen: Three.\nFour.") == [
        ("Anna", "One."),
        ("Ben", "Two."),
        ("Ben", "Three."),
        ("Anna", "Four."),
    ]


def test_a_bare_line_after_a_is_answered_by_b():
    assert said("A: One.\nTwo.") == [("A", "One."), ("B", "Two.")]


def test_a_single_named_speaker_says_all_bare_lines():
    assert said("Anna: One.\nTwo.\nThree.") == [("Anna", "One."), ("Anna", "Two."), ("Anna", "Three.")]


def test_labels_that_differ_in_case_are_one_speaker():
    assert said("a: One.\nA: Two.\nAnna: Three.\nANNA: Four.") == [
        ("A", "One."),
        ("A", "Two."),
        ("Anna", "Three."),
        ("Anna", "Four."),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "http://example.org is a page",
        "It is 5:30",
        "5:30 it is",
        "I told him this: go away",
        "This is a rather long remark: yes",
        "C:\\temp is a folder",
        '"Well": that is a word',
        ": hello",
    ],
)
def test_a_colon_inside_the_text_is_text(line: str):
    assert said(line) == [("A", line)]


def test_only_the_first_colon_ends_a_label():
    assert said("A: Note: it is 5:30.\nB:Yes: http://example.org") == [
        ("A", "Note: it is 5:30."),
        ("B", "Yes: http://example.org"),
    ]


def test_windows_line_ends_byte_order_mark_and_odd_spaces_are_harmless():
    assert parse_script("\ufeffA:\tHi\u00a0 there.\r\n\r\n  B : Hello.\r\n") == [
        Line("A", "Hi there.", 1),
        Line("B", "Hello.", 3),
    ]


def test_text_in_any_script_is_kept():
    assert said("A: Grüße, 你好!\n小明：Привет.") == [("A", "Grüße, 你好!"), ("小明", "Привет.")]


def test_rules_between_lines_are_skipped():
    assert said("Hi.\n---\n***\nHello.") == [("A", "Hi."), ("B", "Hello.")]


@pytest.mark.parametrize("script", ["A: Hi.\nB:", "A: Hi.\nB:   ", "A: Hi.\nB: ..."])
def test_a_label_without_text_is_refused_naming_the_line(script: str):
    with pytest.raises(InputError, match="Line 2.*B"):
        parse_script(script)


@pytest.mark.parametrize("script", ["", "   \n\t\n", "\ufeff", "...\n!!"])
def test_a_script_with_nothing_to_say_is_refused(script: str):
    with pytest.raises(InputError, match="script is empty"):
        parse_script(script)


def test_eight_speakers_are_accepted_and_nine_refused():
    lines = [f"Voice {i}: Hi." for i in range(1, 10)]
    assert len(speakers(parse_script("\n".join(lines[:8])))) == 8
    with pytest.raises(InputError, match="9 speakers; at most 8"):
        parse_script("\n".join(lines))


def test_speakers_are_listed_once_in_order_of_their_first_turn():
    assert speakers(parse_script("B: Hi.\nA: Hi.\nB: Bye.")) == ["B", "A"]
