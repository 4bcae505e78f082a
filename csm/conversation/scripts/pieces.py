"""What every family of formats makes of a script: pieces with or without a label, each with its line. No torch."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from csm.spoken import composed


@dataclass(frozen=True)
class Said:
    """One piece of a script: whose it is (None: the format doesn't say), its text, its line (from 1), and what is
    written beside it that nobody says."""

    label: str | None
    text: str
    number: int
    directions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A script as one family understood it. `kind` names the format, empty for lines with and without labels;
    `guessed` where another reading is possible; without labels, pieces `alternate` or else go to who spoke last."""

    said: list[Said]
    kind: str = ""
    guessed: bool = False
    alternate: bool = True


def clean(raw: str) -> str:
    """One line in composed Unicode, without control and invisible characters, with single spaces."""
    if not raw:
        return raw
    if raw.isascii() and raw.isprintable():
        return " ".join(raw.split())
    # Editors and web pages scatter marks that nobody sees; the two joiners are letters' business in some scripts.
    visible = (c for c in composed(raw) if c in "\u200c\u200d" or unicodedata.category(c) != "Cf")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in visible).split())


def has_words(text: str) -> bool:
    """Whether there is anything to say in it."""
    return any(map(str.isalnum, text))


def numbered(text: str) -> list[tuple[int, str]]:
    """The lines of a text with their numbers from 1."""
    return list(enumerate(text.split("\n"), 1))


def together(group: list[Said]) -> Said:
    """Pieces that are one turn of the first's."""
    directions = tuple(each for one in group for each in one.directions)
    text = " ".join(one.text for one in group if one.text)
    return Said(group[0].label, text, group[0].number, directions)
