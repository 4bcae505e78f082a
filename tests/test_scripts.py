"""Scripts as they are found: every format is read as its writer meant it, and nothing that was typed is lost."""

from __future__ import annotations

import time

import pytest

from csm.conversation.parsing import parse_script, read_script
from csm.conversation.scripts.decoding import decoded
from csm.errors import InputError


def said(script: str) -> list[tuple[str, str]]:
    return [(line.speaker, line.text) for line in parse_script(script)]


def directions(script: str) -> list[tuple[str, ...]]:
    return [line.directions for line in parse_script(script)]


TWO = [("Anna", "Hello there."), ("Ben", "Hi.")]

FOUND = {
    "bold": "**Anna:** Hello there.\n**Ben**: Hi.",
    "bold with a direction": "**Anna (softly):** Hello there.\n**Ben** (loud): Hi.",
    "numbered": "1. Anna: Hello there.\n2) Ben: Hi.",
    "bullets": "- Anna: Hello there.\n• Ben: Hi.",
    "quoted": "> Anna: Hello there.\n> Ben: Hi.",
    "times before": "[00:12] Anna: Hello there.\n[01:02:03] Ben: Hi.",
    "bare times before": "00:12 Anna: Hello there.\n00:15 Ben: Hi.",
    "times behind": "Anna (00:12): Hello there.\nBen [00:15]: Hi.",
    "times above": "Anna  0:12\nHello there.\n\nBen  0:15\nHi.",
    "names above": "Anna:\nHello\nthere.\n\nBen:\nHi.",
    "brackets with a colon": "[Anna]: Hello there.\n[Ben]: Hi.",
    "tags": "<Anna>Hello\nthere.</Anna>\n\n<Ben>Hi.</Ben>",
    "WebVTT": "WEBVTT - a talk\n\nSTYLE\n::cue {}\n\n1\n00:01.000 --> 00:02.000 align:left\n"
    "<v Anna>Hello there.</v>\n\n00:00:02.000 --> 00:00:03.000\n<v.loud Ben>Hi.",
    "SubRip": "1\n00:00:01,000 --> 00:00:02,000\n<i>Anna: Hello</i>\n\n2\n00:00:02,000 --> 00:00:03,000\nthere.\n\n"
    "3\n00:00:03,000 --> 00:00:04,000\nBen: Hi.\n",
    "JSON": '[{"speaker": "Anna", "text": "Hello there."},\n {"role": "Ben", "content": "Hi."}]',
    "JSON in a fence": '```json\n{"turns": [{"name": "Anna", "line": "Hello there."}, ["Ben", "Hi."]]}\n```',
    "JSON lines": '{"speaker": "Anna", "text": "Hello there."}\n{"Ben": "Hi."}\n',
    "CSV": "id,Speaker,Text\n1,Anna,Hello there.\n2,Ben,Hi.\n",
    "CSV of another kind": 'text;speaker\n"Hello\nthere.";Anna\nHi.;Ben\n',
    "Fountain": "INT. HOUSE - DAY\n\nThey sit.\n\nANNA (V.O.)\n(softly)\nHello\n*there*.\n\nBEN ^\nHi.\n",
    "LRC": "[ar:Nobody]\n[00:12.00]Anna: Hello there.\n[00:15.30]Ben: Hi.",
}


@pytest.mark.parametrize("form", FOUND)
def test_a_script_says_the_same_in_whichever_form_it_is_found(form: str):
    assert [(who.capitalize(), text) for who, text in said(FOUND[form])] == TWO
    assert read_script(FOUND[form]).guessed


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028", "\x85"])
def test_any_newline_ends_a_line(end: str):
    assert said(f"Anna: Hello there.{end}Ben: Hi.{end}") == TWO


def test_slots_may_stand_in_one_line():
    assert said("[S1] Hello. [S2] Hi. [S1] Bye.") == [("S1", "Hello."), ("S2", "Hi."), ("S1", "Bye.")]
    assert said("[0]Hello.\n[1]Hi.\n[0]Bye.") == [("Speaker 0", "Hello."), ("Speaker 1", "Hi."), ("Speaker 0", "Bye.")]


@pytest.mark.parametrize("name", ["Dr. Smith", "Mr. O'Brien", "Anne-Marie", "José", "Jean Luc van Damme", "Tom & Ann"])
def test_a_name_may_be_written_as_names_are(name: str):
    assert said(f"{name}: Hello.") == [(name, "Hello.")]


@pytest.mark.parametrize(
    "opening", ["Note", "Remember", "Chapter 1", "Chapter IV", "PS", "He paused and said", "Tip #3"]
)
def test_what_only_opens_a_line_is_text(opening: str):
    assert said(f"{opening}: we must go.\nYes.") == [("A", f"{opening}: we must go."), ("B", "Yes.")]


def test_what_opens_a_line_is_a_speaker_when_it_comes_back():
    assert said("Narration: One.\nAnna: Two.\nNarration: Three.")[0] == ("Narration", "One.")


@pytest.mark.parametrize(
    "text, spoken, beside",
    [
        ("[laughs] Hello.", "Hello.", ("laughs",)),
        ("(whispering) Be quiet.", "Be quiet.", ("whispering",)),
        ("Well [sighs], no (laughs).", "Well, no.", ("sighs", "laughs")),
        ("*chuckles softly* Yes *really*.", "Yes *really*.", ("chuckles softly",)),
        ("Oh <gasp> no.", "Oh no.", ("gasp",)),
        ("The bill (which was late) came.", "The bill (which was late) came.", ()),
        ("(Yes, I know.) But no.", "(Yes, I know.) But no.", ()),
        ("See [1] and x[5] and [this](there).", "See [1] and x[5] and [this](there).", ()),
    ],
)
def test_directions_are_kept_beside_what_is_said(text: str, spoken: str, beside: tuple[str, ...]):
    (line,) = parse_script(f"A: {text}")
    assert (line.text, line.directions) == (spoken, beside)


def test_directions_that_stand_alone_belong_to_the_turn_behind_them_or_else_before():
    assert directions("[Music]\n(They sit.)\nA: Hi.\nB: (nods)\nB: Yes.\n[The end]") == [
        ("Music", "They sit."),
        ("B: nods", "The end"),
    ]
    assert directions("JOHN (whispering): Hush.\nJOHN (CONT'D): Now.") == [("whispering",), ("CONT'D",)]


def test_it_says_what_it_understood_where_it_is_a_guess():
    assert read_script("Anna: Hi [laughs].\nBen: Ho.\nAnna: (sighs) No.").told == (
        "Read as 2 speakers, 3 turns, 2 directions left out."
    )
    assert read_script(FOUND["JSON"]).told == "Read as JSON: 2 speakers, 2 turns."
    assert not read_script("A: Hi.\nB: Hello.\nIt is 5:30.").guessed


@pytest.mark.parametrize("script", [*FOUND.values(), "Anna: Hi [laughs].", "Summary: it rains.\nNews: none."])
def test_a_text_taken_as_it_stands_loses_nothing(script: str):
    whole = "".join(line.speaker + line.text for line in read_script(script, as_it_stands=True).lines)
    assert all(word in whole for line in script.splitlines() for word in line.split() if any(map(str.isalnum, line)))


def test_labels_that_leave_no_doubt_are_labels_in_a_text_taken_as_it_stands():
    script = "A: Hi [laughs].\nSpeaker 2: Yes.\nAnna: One.\nAnna: Two.\nNews: none."
    lines = read_script(script, as_it_stands=True).lines
    assert [line.speaker for line in lines] == ["A", "Speaker 2", "Anna", "Anna", "A"]
    assert lines[0].text == "Hi [laughs]." and lines[-1].text == "News: none."


@pytest.mark.parametrize(
    "script, sentence",
    [
        ("<Person1>Hi.\n<Person2>Ho.</Person2>", "Line 2: <Person1> is still open"),
        ("Hi.\n<Person1>Hi.\nHo.", "Line 2: <Person1> is never closed"),
        ("Hi.\n</Anna>", "Line 2: </Anna> closes nothing"),
        ('[{"speaker": "A", "text": "Hi."},\n{"speaker": "B"}]', "Line 2: this entry has no text"),
        ('[{"speaker": "A", "text": "Hi."},\n{"speaker" "B"}]', "Line 2: this JSON can't be read"),
        ("[" + '["' * 5, "Line 1: "),
        ('speaker,text\nA,Hi.\nB,"Ho', "Line 3 of the table"),
        ("speaker,text\nA,Hi.\nB", "Line 3 of the table"),
        (f'[{{"speaker": "{"x" * 30}", "text": "Hi."}}]', "Line 1: the speaker's name"),
    ],
)
def test_a_broken_script_is_refused_with_its_line(script: str, sentence: str):
    with pytest.raises(InputError, match="^" + sentence.replace("(", r"\(")) as refused:
        parse_script(script)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "piece",
    ["[", "(a ", "/*", "<a", "*a", "<Person1>", "[00:12]", "hi (a\n", "A:\nhi\n\n", "[S1] hi ", "\u0301\u0316", "<v."],
)
def test_the_time_a_script_takes_grows_with_its_length_alone(piece: str):
    def seconds(size: int) -> float:
        begun = time.process_time()
        head = "WEBVTT\n\n00:00.000 --> 00:02.000\n" if piece == "<v." else ""
        try:
            read_script(head + piece * (size // len(piece)))
        except InputError:
            pass
        return time.process_time() - begun

    seconds(1_000)
    short, long = (min(seconds(size) for _ in range(3)) for size in (4_000, 64_000))
    assert long < 100 * max(short, 2e-3)  # 16 times the work, 256 were it squared


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_that_tells_its_encoding_is_read_without_a_word(encoding: str):
    found = decoded("A: Grüße, José.\n".encode(encoding))
    assert (found.text, found.note) == ("A: Grüße, José.\n", "")


def test_what_is_assumed_of_an_encoding_is_said():
    western = decoded("A: Hi.\nB: “José”\n".encode("cp1252"))
    assert western.text == "A: Hi.\nB: “José”\n"
    assert western.note == "The script is not UTF-8 and was read as Windows-1252: see line 2, “B: “José””."
    for encoding in ("utf-16-le", "utf-16-be"):
        assert decoded("A: Hello there.\n".encode(encoding)).text == "A: Hello there.\n"
        assert "UTF-16" in decoded("A: Hello there.\n".encode(encoding)).note


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04...", b"%PDF-1.4", b"{\\rtf1 x", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfea"]
)
def test_a_file_that_is_no_text_is_refused(data: bytes):
    with pytest.raises(InputError, match=r"^The script is [^\n]*\.$"):
        decoded(data)
