"""Written English to the words that are said: the first step of a text on its way to ids, and no model is needed.

`spoken` puts words in place of what is not written as it is said: amounts, dates, units, abbreviations, addresses,
capitals. Case, punctuation and the letters of all other words stay. `plain` turns that into the few letters that the
embedded model reads.
"""

from __future__ import annotations

import re
from functools import lru_cache

from csm.spoken.addresses import RULES as ADDRESSES
from csm.spoken.capitals import BEGINNERS, ROMAN
from csm.spoken.capitals import RULES as LETTER_BY_LETTER
from csm.spoken.dates import NAMES
from csm.spoken.dates import RULES as DATES
from csm.spoken.figures import CODES, JOINTS
from csm.spoken.figures import RULES as NUMBERS
from csm.spoken.letters import UNREADABLE, left_out, plain
from csm.spoken.measures import RULES as MEASURES
from csm.spoken.money import RULES as MONEY
from csm.spoken.rules import apply
from csm.spoken.signs import ARITHMETIC, SIGNS, composed, readable
from csm.spoken.titles import BARE, SHORT_FORMS
from csm.spoken.titles import RULES as TITLES

__all__ = ["BEGINNERS", "SHORT_FORMS", "UNREADABLE", "changed", "composed", "forget", "left_out", "plain", "spoken"]

# In this order: what one kind takes, those after it no longer see.
ABBREVIATIONS = [*TITLES, *NAMES]
FIGURES = [*ADDRESSES, *CODES, *MONEY, *DATES, *MEASURES, *ARITHMETIC, *NUMBERS, *JOINTS]
CAPITALS = [*ROMAN, *LETTER_BY_LETTER]

LONGEST_REMEMBERED, MOST_REMEMBERED = 1_000, 4_096  # letters of a text; texts
_FIGURE = re.compile(r"[^A-Za-z\s,.?!;:'\"-]|\.\w")  # what can't be read letter by letter


def spoken(text: str) -> str:
    """The text as it is read out, in the same case and with the same punctuation.

    Turns are looked at again and again, by the page at every pause in typing: what was found for them is remembered.
    """
    return _remembered(text) if len(text) <= LONGEST_REMEMBERED else _spoken(text)


def _spoken(text: str) -> str:
    text = readable(text)
    return "".join(_piece(piece) for piece in re.findall(r"[^\n]{0,2000}(?:\s|$)|[^\n]{1,2000}|\n", text))


_remembered = lru_cache(maxsize=MOST_REMEMBERED)(_spoken)
forget = _remembered.cache_clear  # what somebody wrote is not kept for longer than it serves


def changed(text: str, words: str) -> bool:
    """Whether `words` are others than those of `text`, whatever their case and punctuation."""
    return re.findall(r"[^\W_]+", text.lower()) != re.findall(r"[^\W_]+", words.lower())


def _piece(text: str) -> str:
    if re.fullmatch(r"[a-z ,?!;:'-]*", text) and not BARE.search(text):
        return text
    text = apply(ABBREVIATIONS, text)
    if _FIGURE.search(text):
        text = apply(FIGURES, text)
    text = apply(CAPITALS, text)
    return apply(SIGNS, text) if _FIGURE.search(text) else text
