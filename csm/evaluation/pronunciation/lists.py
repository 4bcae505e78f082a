"""What is to be said: sentences that decide between a word's two pronunciations, and contexts that have decided.

Both were written for this and lie in `csm/assets/evaluation/`. In `homographs.txt` a heading names a word and one
pronunciation in CMU's phones, and the sentences below it ask for that one; every word has both, in equal parts. In
`continuation.txt` a heading has both pronunciations of a word that may be said either way; below it come pairs of a
context and of a turn that says the word again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from csm.assets import ASSETS
from csm.listening.words import comparable

FOLDER = ASSETS / "evaluation"
NEUTRAL = "We talked about it for a while yesterday, and then we all went home."


@dataclass(frozen=True)
class Choice:
    """A `word` in a text, its two pronunciations in CMU's phones, and which of them (0 or 1) is the right one."""

    word: str
    ways: tuple[str, str]
    text: str
    right: int

    def around(self) -> tuple[str, str]:
        """The text before the word and after it."""
        found = re.search(rf"\b{self.word}\b", self.text, re.IGNORECASE)
        assert found is not None, f"{self.word} is not in {self.text!r}"
        return self.text[: found.start()], self.text[found.end() :]

    def said(self, way: int) -> Choice:
        """The same text, asking for the other way, or for this one."""
        return Choice(self.word, self.ways, self.text, way)


@dataclass(frozen=True)
class Again:
    """A context that says a word, and a turn that says it again: the same text in both ways."""

    context: Choice
    turn: Choice


def homographs(most: int | None = None) -> list[Choice]:
    """All sentences, or the first `most` of an order in which both ways of a word follow each other and any
    beginning is spread over the words."""
    ways: dict[str, list[str]] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    for (word, way), sentences in _blocks("homographs.txt"):
        ways.setdefault(word, []).append(way)
        texts[word, way] = sentences
    per_way = max(len(sentences) for sentences in texts.values())
    made = [
        Choice(word, (first, second), texts[word, way][number], right)
        for number in range(per_way)
        for word, (first, second) in ways.items()
        for right, way in enumerate((first, second))
        if number < len(texts[word, way])
    ]
    return made[:most]


def continuations(most: int | None = None) -> list[Again]:
    """Every pair of context and turn in both ways, one after the other; the first `most` of them."""
    blocks = [(heading, list(zip(lines[::2], lines[1::2]))) for heading, lines in _blocks("continuation.txt")]
    made = [
        Again(
            Choice(word, (first, second), pairs[number][0], way), Choice(word, (first, second), pairs[number][1], way)
        )
        for number in range(max(len(pairs) for _, pairs in blocks))
        for (word, first, second), pairs in blocks
        if number < len(pairs)
        for way in (0, 1)
    ]
    return made[:most]


def words_of(text: str) -> list[str]:
    """The words of a text as the judge's dictionary has them."""
    return comparable(text)


def _blocks(name: str) -> list[tuple[Sequence[str], list[str]]]:
    """The headings of a list, cut at their bars, and the lines below each."""
    blocks: list[tuple[Sequence[str], list[str]]] = []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            blocks.append((tuple(part.strip() for part in line[1:].split("|")), []))
        elif line.strip():
            blocks[-1][1].append(line.strip())
    return blocks
