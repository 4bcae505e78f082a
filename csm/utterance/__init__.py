"""A turn's text to what is spoken at a stretch: the one place where direction is read and long text is cut.

Whoever speaks asks here: page, command line, Python, `/generate` and `/v1`. What comes out, `Part`s, is what the model
reads one after the other; they are one turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from csm.errors import InputError
from csm.spoken import forget as forget_spoken
from csm.spoken import spoken
from csm.utterance.cutting import LONGEST, stretches
from csm.utterance.dictionary import NO_WORDS, Dictionary
from csm.utterance.marks import Direction, bare, directed, marked

__all__ = ["LONGEST", "PLAIN", "Dictionary", "Part", "Wording", "bare", "forget", "marked", "parts"]

LONGEST_WORD = 1_000  # letters without a space; nobody says a longer one
MOST_GROWTH = 1.3  # what is said of a piece may be this much longer than `LONGEST`
LONGEST_REMEMBERED, MOST_REMEMBERED = 1_000, 4_096  # letters of a text; texts


@dataclass(frozen=True)
class Part:
    """What is said at a stretch, and the seconds of silence behind it. A pause that opens a turn has no text."""

    text: str
    pause: float = 0.0


@dataclass(frozen=True)
class Wording:
    """How texts are worded: a pronunciation `dictionary`, and whether they are `spelled_out`, for models that read what
    is written: figures, amounts and abbreviations in words, as the embedded model always reads them."""

    dictionary: Dictionary = NO_WORDS
    spelled_out: bool = False


PLAIN = Wording()


def parts(text: str, wording: Wording = PLAIN) -> tuple[Part, ...]:
    """A turn's text -> its parts, in order: one, unless it is long or has pauses. Empty when nothing can be said.

    Raises `InputError` for direction that can't be followed, and for a word that is none.
    """
    return _remembered(text, wording) if len(text) <= LONGEST_REMEMBERED else _parts(text, wording)


def _parts(text: str, wording: Wording) -> tuple[Part, ...]:
    if longest := max((word for word in text.split() if len(word) > LONGEST_WORD), key=len, default=""):
        raise InputError(
            f"A word of {len(longest):,} letters, “{longest[:20]}…”, can't be spoken: put spaces into it.", "long_word"
        )
    found: list[Part] = []
    for stretch in directed(text):
        words = _worded(stretch, wording)
        cut = [Part(piece) for piece in _cut(words)]
        if cut:
            found += [*cut[:-1], Part(cut[-1].text, stretch.pause)]
        elif found:
            found[-1] = Part(found[-1].text, found[-1].pause + stretch.pause)
        elif stretch.pause:
            found.append(Part("", stretch.pause))
    return tuple(found) if any(part.text for part in found) else ()


_remembered = lru_cache(maxsize=MOST_REMEMBERED)(_parts)


def forget() -> None:
    """Forget the texts that are remembered, here and in `csm.spoken`."""
    _remembered.cache_clear()
    forget_spoken()


def _worded(stretch: Direction, wording: Wording) -> str:
    """The words of a stretch: those of the text respelt, those that are spelt out left alone."""
    said = []
    for words, literal in stretch.words:
        words = words if literal else wording.dictionary.respelt(words)
        said.append(spoken(words) if wording.spelled_out else words)
    lines = "".join(said).split("\n")
    return "\n".join(" ".join(line.split()) for line in lines).strip()


def _cut(words: str) -> list[str]:
    """At a stretch as much as the model has heard; figures count as the words that they are."""
    if len(words) <= LONGEST and "\n" not in words and len(said := spoken(words)) <= LONGEST * MOST_GROWTH:
        return [words] if any(map(str.isalnum, said)) else []
    cut: list[str] = []
    for piece in stretches(words, LONGEST):
        growth = len(spoken(piece)) / (LONGEST * MOST_GROWTH)
        cut += [piece] if growth <= 1 else stretches(piece, max(20, int(len(piece) / growth)))
    return cut
