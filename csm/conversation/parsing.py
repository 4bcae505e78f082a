"""Script text to turns: who says what, in order; the first step on the way from script to sound. No torch."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from csm.errors import InputError

DEFAULT_SPEAKERS = ("A", "B")
MAX_SPEAKERS = 8
MAX_LABEL = 24  # characters
MAX_LABEL_WORDS = 3

_LABEL = re.compile(r"([^\W\d_][\w .-]*?) ?[:：](.*)")


@dataclass(frozen=True)
class Line:
    """One turn: the speaker's label as displayed, the text to say, and its line number in the script (from 1)."""

    speaker: str
    text: str
    number: int


def parse_script(text: str) -> list[Line]:
    """Split a script into turns.

    A line is `A: text`, `Name: text` or bare text. A label begins with a letter, has at most 24 characters
    (letters, digits, spaces, `-`, `_`, `.`) and at most three words; any other colon belongs to the text. Labels that
    differ only in case are one speaker, written as it first appears; single letters become capitals.

    A bare line goes to the speaker after the one who spoke last, in the order in which the script first names
    them, and a bare first line to the first of them. While a script names nobody but A and B, both take turns.
    Blank lines, and bare lines without a letter or digit such as `---`, are skipped.

    Raises `InputError` when a label has nothing after it, when there are more than 8 speakers, and when the
    script holds nothing to say.
    """
    lines: list[tuple[str | None, str, int]] = []
    shown: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        label, said = _split(_clean(raw))
        if label is not None:
            if not _has_words(said):
                told = f"Line {number} has no text after “{label}:”; write what {label} says or delete it."
                raise InputError(told, "no_text")
            label = shown.setdefault(label.casefold(), label)
        elif not _has_words(said):
            continue
        lines.append((label, said, number))
    if not lines:
        raise InputError("The script is empty; write at least one line such as “A: Hello.”")
    order = list(shown.values())
    if set(order) <= set(DEFAULT_SPEAKERS):
        order += [name for name in DEFAULT_SPEAKERS if name not in order]
    if len(order) > MAX_SPEAKERS:
        raise InputError(f"The script has {len(order)} speakers; at most {MAX_SPEAKERS} fit in one conversation.")
    turns: list[Line] = []
    following = 0
    for label, said, number in lines:
        speaker = order[following] if label is None else label
        following = (order.index(speaker) + 1) % len(order)
        turns.append(Line(speaker, said, number))
    return turns


def speakers(lines: list[Line]) -> list[str]:
    """The labels of those who speak, each once, in order of their first turn."""
    return list(dict.fromkeys(line.speaker for line in lines))


def _clean(raw: str) -> str:
    """One line in composed Unicode, without control and invisible characters, with single spaces."""
    composed = unicodedata.normalize("NFC", raw)
    # Editors and web pages scatter marks that nobody sees; the two joiners are letters' business in some scripts.
    visible = (c for c in composed if c in "\u200c\u200d" or unicodedata.category(c) != "Cf")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in visible).split())


def _split(line: str) -> tuple[str | None, str]:
    """A cleaned line -> (label or None, text)."""
    match = _LABEL.fullmatch(line)
    if match is None:
        return None, line
    label, rest = match[1], match[2]
    words = label.split()
    attached = bool(rest) and not rest.startswith(" ")
    # "http://…", "C:\…" and "It is 5:30" are text; "A:Hello" is a label.
    if attached and (len(words) > 1 or rest[0] in "/\\" or (label[-1].isdigit() and rest[0].isdigit())):
        return None, line
    if len(label) > MAX_LABEL or len(words) > MAX_LABEL_WORDS:
        return None, line
    return (label.upper() if len(label) == 1 else label), rest.strip()


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)
