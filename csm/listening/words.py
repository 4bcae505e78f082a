"""Words written and words heard, side by side: what a transcript is worth, at the listening end of script to sound."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from num2words import num2words
from rapidfuzz.distance import Levenshtein

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+(?:st|nd|rd|th)?")
# One word, two spellings: hearing it right must not count as an error.
_SPELLINGS = {
    "ok": "okay",
    "cancelled": "canceled",
    "colour": "color",
    "favourite": "favorite",
    "grey": "gray",
    "neighbour": "neighbor",
}
_COMPOUND = re.compile(r"\b(some|any|every|no) (body)\b|\b(some|any|every) (one)\b")


def comparable(text: str) -> list[str]:
    """The words of `text` as they are compared: lower-case, no punctuation, whole numbers (20th, too)
    spelled out, contractions kept as one word, two spellings of a word ("some one", "cancelled") made one."""
    text = text.lower().replace("\u2019", "'").replace("\u02bc", "'")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = _COMPOUND.sub(lambda match: match[0].replace(" ", ""), text)
    words: list[str] = []
    for word in _WORD.findall(text):
        words += _spell(word) if word[0].isdigit() else [_SPELLINGS.get(word, word)]
    return words


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Substitutions, deletions and insertions over all sentences, divided by all words of the references.

    0.25 is one word in four. More than 1 is possible: a hypothesis can be longer than its reference.
    Raises `ValueError` when the lists differ in length or the references hold no word.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references do not match {len(hypotheses)} hypotheses.")
    pairs = [(comparable(reference), comparable(hypothesis)) for reference, hypothesis in zip(references, hypotheses)]
    words = sum(len(reference) for reference, _ in pairs)
    if not words:
        raise ValueError("There is no word in the references.")
    return sum(Levenshtein.distance(reference, hypothesis) for reference, hypothesis in pairs) / words


def letters_apart(reference: str, hypothesis: str) -> float:
    """Letters that differ, divided by those of the longer text, spaces aside: 0 for the same, near 1 for others.

    What was heard wrong still sounds alike ("seabirds rested", "sea bird dressed it"), and so it is spelled alike.
    """
    written, heard = ("".join(comparable(text)) for text in (reference, hypothesis))
    return Levenshtein.distance(written, heard) / max(1, len(written), len(heard))


@dataclass(frozen=True)
class Difference:
    """A place where two texts part: the words `written` there and the words `heard` there; one may be empty."""

    written: tuple[str, ...]
    heard: tuple[str, ...]


def differences(reference: str, hypothesis: str) -> list[Difference]:
    """Where `hypothesis` departs from `reference`, in order; what is heard the same is left out."""
    written, heard = comparable(reference), comparable(hypothesis)
    steps = SequenceMatcher(None, written, heard, autojunk=False).get_opcodes()
    return [Difference(tuple(written[a:b]), tuple(heard[c:d])) for kind, a, b, c, d in steps if kind != "equal"]


def _spell(number: str) -> list[str]:
    digits = number.rstrip("dhnrst")
    if len(digits) > 12:  # nobody says it, and a recogniser that repeats itself may write it
        return [number]
    words = num2words(int(digits), to="cardinal" if digits == number else "ordinal")
    return [word for word in re.findall("[a-z]+", words) if word != "and"]
