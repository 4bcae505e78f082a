"""Running text of any length, cut into what can be read aloud: sentence by sentence, each a turn of one conversation.

Where a script has turns, programs have one long text; this is the first step on their way from text to sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 200  # letters; the model has heard hardly any turn that was longer
SHORTEST = 20  # letters; shorter ones are joined, as a voice would

CLOSING = "\"'”’)"

_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+|(?<=[。！？])\s*")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|[A-Z])\.$")
_PAUSE = re.compile(r"(?<=[,;:—–])\s+")


def sentences(text: str) -> list[str]:
    """Running text -> pieces of 20 to 200 letters where that is possible, cut at sentences, pauses, then words.

    Empty when nothing in the text can be spoken.
    """
    found: list[str] = []
    for piece in filter(_speakable, _pieces(text)):
        if found and len(found[-1]) < SHORTEST and len(found[-1]) + len(piece) < LONGEST:
            found[-1] = f"{found[-1]} {piece}"
        else:
            found.append(piece)
    if len(found) > 1 and len(found[-1]) < SHORTEST and len(found[-2]) + len(found[-1]) < LONGEST:
        found[-2:] = [" ".join(found[-2:])]
    return found


def _speakable(text: str) -> bool:
    return any(map(str.isalnum, text))


def _pieces(text: str) -> Iterator[str]:
    """Sentences, and parts of those that are longer than `LONGEST`."""
    for line in map(str.split, text.splitlines()):
        unfinished = ""
        for sentence in _END.split(" ".join(line)):
            # “Really?” asked Anna.
            goes_on = sentence[:1].islower() and unfinished[-1:] in CLOSING
            if unfinished and not goes_on and not _ABBREVIATED.search(unfinished):
                yield from _parts(unfinished)
                unfinished = ""
            unfinished = f"{unfinished} {sentence}".strip()
        yield from _parts(unfinished)


def _parts(sentence: str) -> Iterator[str]:
    """A sentence, cut where a speaker breathes and, where that does not help, between words and at last anywhere."""
    while len(sentence) > LONGEST:
        window = sentence[: LONGEST + 1]
        pauses = [match.start() for match in _PAUSE.finditer(window) if match.start() >= SHORTEST]
        words = [index for index, letter in enumerate(window) if letter == " " and index >= SHORTEST]
        cut = (pauses or words or [LONGEST])[-1]
        yield sentence[:cut].strip()
        sentence = sentence[cut:].strip()
    if sentence:
        yield sentence
