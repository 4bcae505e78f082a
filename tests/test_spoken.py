"""Written English becomes the words that a person would say."""

import io
import re
import time
from pathlib import Path

import pytest

from csm.cli import main
from csm.errors import InputError
from csm.evaluation.mixed import mixed_lines
from csm.spoken import changed, left_out, spoken
from csm.text import ByteTokenizer

LIST = Path(__file__).parent / "files" / "spoken.tsv"
CASES = [line.split("\t") for line in LIST.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
read = ByteTokenizer.normalise


def words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower().replace("'", ""))


def test_the_list_is_long_and_has_every_kind():
    assert len(CASES) >= 150
    assert len({kind for kind, _, _ in CASES}) >= 20


@pytest.mark.parametrize(("kind", "text", "said"), CASES, ids=[f"{kind}-{text}" for kind, text, _ in CASES])
def test_it_is_read_as_a_person_reads_it(kind, text, said):
    assert any(words(read(text)) == words(way) for way in said.split("|")), read(text)


def test_mixed_lines_are_read_in_the_words_that_they_are_spelt_in():
    lines = mixed_lines()
    assert len(lines) == 60 and all(written != spelt for written, spelt in lines)
    for written, spelt in lines:
        assert read(written) == read(spelt)


@pytest.mark.parametrize(
    "text",
    [
        "Honestly, I don't know what to say about history.",
        "Well, that's it: we go; you stay - or not?",
        "May I ask who will march in the fall?",
        "No. I won't. I am sure, and he is, too.",
        "She said it was easy, but I don't agree...",
    ],
)
def test_what_is_plain_already_stays_byte_for_byte(text):
    assert read(text) == text.lower()
    assert spoken(text) == text


def test_case_and_punctuation_of_other_words_stay():
    assert spoken("“Well,” said Anna, “it's $5!”") == '"Well," said Anna, "it\'s five dollars!"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("We met at 5 p.m. Then we left.", "we met at five p m. then we left."),
        ("I live in the U.S. It is big.", "i live in the u s. it is big."),
        ("He lives on Elm St.", "he lives on elm street."),
        ("See Dr. Lee of St. Paul St. at 5.", "see doctor lee of saint paul street at five."),
        ("Bring pens, etc. Then go.", "bring pens, et cetera. then go."),
    ],
)
def test_the_stop_of_an_abbreviation_ends_a_sentence_where_it_does(text, said):
    assert read(text) == said


@pytest.mark.parametrize(("text", "said"), [("Come in", "come in."), ("Well,", "well."), ("Why?", "why?"), ("", "")])
def test_a_text_without_an_end_is_given_one(text, said):
    assert read(text) == said
    assert read(f"[3]{text}") == f"[3]{said}"


def test_letters_of_other_alphabets_are_read_and_nothing_is_fused_or_lost():
    assert read("Straße, Łódź, Þór, Ελλάδα, Привет·друг") == "strasse, lodz, thor, ellada, privet drug."
    assert read("１２ ﬁsh, 𝐛𝐨𝐥𝐝, ٣") == "twelve fish, bold, three."


@pytest.mark.parametrize("word", ["你好", "日本語", "안녕", "مرحبا", "שלום", "नमस्ते"])
def test_scripts_that_cannot_be_read_out_are_refused_by_the_word(word):
    with pytest.raises(InputError, match=rf"^“{word}” can't be spoken.*\.$"):
        read(f"Hello {word}, my friend.")


def test_signs_that_are_no_speech_are_left_out_and_named():
    assert read("I love it 😀♥, yes™!") == "i love it, yes!"
    assert left_out("I love it 😀♥😀, yes™!") == ["😀", "♥", "™"]


def test_it_is_told_where_words_differ_from_what_was_typed():
    assert changed("It costs $5.", read("It costs $5."))
    assert not changed("“Well,” she said – it's fine!", read("“Well,” she said – it's fine!"))


@pytest.mark.parametrize(
    "piece", ["\u0301\u0316", "7", "A", "1,", ",111", "$1", "1°", "a@", "/a", "½", "1:", "+1 ", "A.", "%", "\u2028"]
)
def test_hostile_text_takes_time_in_proportion(piece):
    def seconds(letters: int) -> float:
        text = (f"a{piece * letters}")[:letters]
        started = time.process_time()
        read(text)
        return time.process_time() - started

    seconds(1000)
    short, long = (min(seconds(size) for _ in range(3)) for size in (3_000, 24_000))
    assert long < 30 * max(short, 0.01)  # quadratic time would be 64 times as long


def test_the_command_prints_what_is_read_line_for_line(capsys, monkeypatch):
    assert main(["words", "It's $5.", "The FBI left."]) == 0
    assert capsys.readouterr().out == "it's five dollars.\nthe f b i left.\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi 5!\n\nIn 1999\n"))
    assert main(["words"]) == 0
    assert capsys.readouterr().out == "hi five!\n\nin nineteen ninety nine.\n"


def test_the_command_refuses_with_the_line_and_the_word(capsys):
    assert main(["words", "Hi.", "Hi 你好."]) == 2
    told = capsys.readouterr()
    assert told.out == "hi.\n" and told.err.startswith("Line 2: “你好” can't be spoken") and told.err.count("\n") == 1
