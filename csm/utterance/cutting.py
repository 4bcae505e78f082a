"""Long text, cut into what can be read aloud at a stretch: at sentences, then clauses, then between words; never behind
an abbreviation or inside a number."""

from __future__ import annotations

import re
from collections.abc import Iterator

from csm.spoken import BEGINNERS, SHORT_FORMS

LONGEST = 200  # letters; the model has heard hardly any turn that was longer
SHORTEST = 20  # letters; shorter ones are joined, as a voice would

CLOSING = "\"'”’)"

_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+|(?<=[。！？])\s*")
# A stop behind one of these ends a sentence only where a word follows with which sentences begin.
_SHORT = re.compile(rf"(?:^|[\s(\"“'‘-])(?:{'|'.join(sorted(SHORT_FORMS))}|(?:[a-z]\.)+[a-z]|\d{{1,3}})\.$", re.I)
_TITLE = re.compile(r"(?:^|[\s(\"“'‘])(?:Mr|Mrs|Ms|Dr|Prof|Gen|Sen|Rep|Rev|Capt|Lt|Sgt|Col|St|Mt|Ft|[A-Z])\.$")
_PAUSE = re.compile(r"(?<=[,;:—–])\s+(?!\d)|(?<=[^\d][,;:—–])\s+")
_CLAUSE = re.compile(r"\s+(?=(?:and|but|or|because|which|who|when|where|while|although|so|if|that)\s)")


def stretches(text: str, longest: int = LONGEST) -> list[str]:
    """Running text -> pieces of 20 letters to `longest` where that is possible, cut at sentences, pauses, then words.

    Empty when nothing in the text can be spoken.
    """
    found: list[str] = []
    for piece in filter(_speakable, _pieces(text, longest)):
        if found and len(found[-1]) < SHORTEST and len(found[-1]) + len(piece) < longest:
            found[-1] = f"{found[-1]} {piece}"
        else:
            found.append(piece)
    if len(found) > 1 and len(found[-1]) < SHORTEST and len(found[-2]) + len(found[-1]) < longest:
        found[-2:] = [" ".join(found[-2:])]
    return found


def _speakable(text: str) -> bool:
    return any(map(str.isalnum, text))


def _pieces(text: str, longest: int) -> Iterator[str]:
    """Sentences, and parts of those that are longer than `longest`."""
    for line in map(str.split, text.splitlines()):
        unfinished: list[str] = []
        for sentence in _END.split(" ".join(line)):
            if unfinished and not _goes_on(unfinished[-1], sentence):
                yield from _parts(" ".join(unfinished), longest)
                unfinished = []
            unfinished.append(sentence)
        yield from _parts(" ".join(filter(None, unfinished)), longest)


def _goes_on(before: str, after: str) -> bool:
    """Whether what looks like the end of a sentence is none: “Really?” asked Anna; Dr. Brown; at 9 a.m. sharp."""
    if after[:1].islower() and before[-1:] in CLOSING:
        return True
    end = before[-24:]
    if _TITLE.search(end):
        return True
    first = re.match(r"[\"“'‘(]*([\w'’]+)", after[:40])
    return _SHORT.search(end) is not None and first is not None and first[1] not in BEGINNERS


def _parts(sentence: str, longest: int) -> Iterator[str]:
    """A sentence, cut where a speaker breathes and, where that does not help, at a clause, between words that are no
    number's and no abbreviation's, between any, and at last anywhere."""
    at = 0
    while len(sentence) - at > longest:
        window = sentence[at : at + longest + 1]
        cut = at + _cut(window, longest)
        yield sentence[at:cut].strip()
        at = cut + len(sentence[cut : cut + 1]) - len(sentence[cut : cut + 1].lstrip())
    if rest := sentence[at:].strip():
        yield rest


def _cut(window: str, longest: int) -> int:
    """Where to cut the first `longest` letters and one more of something longer."""
    spaces = [index for index, letter in enumerate(window) if letter == " " and index >= SHORTEST]
    for places in (
        (match.start() for match in _PAUSE.finditer(window) if match.start() >= SHORTEST),
        (match.start() for match in _CLAUSE.finditer(window) if match.start() >= longest // 2),
        (at for at in spaces if not re.search(r"[\d.] | [\d]", window[at - 1 : at + 2])),
        spaces,
    ):
        if found := list(places):
            return found[-1]
    return longest
