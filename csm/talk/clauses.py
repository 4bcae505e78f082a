"""A language model's words while they come, cut into what can be spoken at once: a clause first, then sentences."""

from __future__ import annotations

import re

from csm.speech.clauses import Cutter

FIRST = 25  # letters of the first piece at least: shorter ones sound cut off
SENTENCE = 12  # letters of the others at least

_CODE = re.compile(r"```.*?(?:```|$)", re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"[*_#`~|<>\\]+|^\s*(?:[-+•]|\d+[.)])\s+", re.MULTILINE)
_PICTURES = re.compile(r"[\u2190-\u2bff\U0001f000-\U0001faff\ufe0e\ufe0f\u200d\u20e3]")


def clauses() -> Cutter:
    """For one answer: a clause first, then sentences."""
    return Cutter(SENTENCE, FIRST, again=False)


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
