"""A language model's words while they come, cut into what can be spoken at once: a clause first, then sentences."""

from __future__ import annotations

import re

FIRST = 25  # letters of the first piece at least: shorter ones sound cut off
SENTENCE = 12  # letters of the others at least
LONGEST = 220  # letters after which a piece ends at the next space

_FIRST_END = re.compile(r"[,;:.!?…](?=\s)|\n| [-–—](?= )")
_END = re.compile(r"[.!?…][\"”’)]*(?=\s)|\n")
_CODE = re.compile(r"```.*?(?:```|$)", re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"[*_#`~|<>\\]+|^\s*(?:[-+•]|\d+[.)])\s+", re.MULTILINE)
_PICTURES = re.compile(r"[\u2190-\u2bff\U0001f000-\U0001faff\ufe0e\ufe0f\u200d\u20e3]")


class Clauses:
    """Takes text as it comes, gives pieces that follow each other without a gap: together they are the text."""

    def __init__(self) -> None:
        self._text = ""
        self._first = True

    def push(self, text: str) -> list[str]:
        """More text -> the pieces that are whole now."""
        self._text += text
        pieces = []
        while piece := self._cut():
            pieces.append(piece)
        return pieces

    def finish(self) -> list[str]:
        """The rest."""
        rest, self._text = self._text, ""
        return [rest] if rest.strip() else []

    def _cut(self) -> str:
        ends, least = (_FIRST_END, FIRST) if self._first else (_END, SENTENCE)
        for found in ends.finditer(self._text):
            if len(self._text[: found.end()].strip()) >= least:
                return self._taken(found.end())
        if len(self._text) > LONGEST and (space := self._text.rfind(" ", FIRST, LONGEST)) > 0:
            return self._taken(space)
        return ""

    def _taken(self, end: int) -> str:
        piece, self._text, self._first = self._text[:end], self._text[end:], False
        return piece


def speakable(text: str) -> str:
    """What is said of a piece: without the marks of a page and without pictures. Empty where nothing is left."""
    text = _LINK.sub(r"\1", _CODE.sub(" ", text))
    text = " ".join(_PICTURES.sub(" ", _MARKS.sub(" ", text)).split())
    return text if any(map(str.isalnum, text)) else ""


def heard_words(text: str, share: float) -> str:
    """The words of `text` of which a `share` (0 to 1) was heard: those that were heard whole, by their letters."""
    if share >= 1:
        return text
    before, end = len(text) - len(text.lstrip()), 0
    limit = before + share * len(text.strip())
    for found in re.finditer(r"\S+", text):
        if found.end() > limit:
            break
        end = found.end()
    return text[:end]
