"""Text that is still being written, cut at the ends of clauses as they come, so that it can be spoken meanwhile.

The first stop where text streams in. Where it is cut depends on the text alone, not on the pieces in which it comes:
the same text with the same seed is the same speech.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from csm.spoken import SHORT_FORMS

SHORTEST = 20  # letters of a piece that ends at a pause; shorter ones go on, as a voice would
LONGEST = 200  # letters; the model has heard hardly any turn that was longer

# An end is known to be one by the space behind it, but for that of a line.
_END = re.compile(r"\n+|[.!?…]+[\"'”’)]*(?=\s)|[。！？]")
_PAUSE = re.compile(r"[,;:—–][\"'”’)]*(?=\s)|[，、；：]")
# A stop behind one of these ends no sentence: a title, an abbreviation, an initial, the number of a list.
_SHORT = re.compile(
    rf"(?:^|[\s(\"“'‘-])(?:Mr|Mrs|Ms|Dr|Prof|St|[A-Z]|\d{{1,3}}|(?:[a-z]\.)+[a-z]|{'|'.join(sorted(SHORT_FORMS))})\.$",
    re.I,
)


class Cutter:
    """Takes text as it comes, gives pieces that follow each other without a gap: together they are the text.

    A piece ends with a sentence of at least `sentence` letters, or at a pause behind at least `pause` of them; at a
    pause only the first one where it is not `again`, so that speech begins soon and goes on in sentences.
    """

    def __init__(self, sentence: int = 1, pause: int = SHORTEST, again: bool = True) -> None:
        self._text, self._pauses = "", True
        self._sentence, self._pause, self._again = sentence, pause, again

    def push(self, text: str) -> list[str]:
        """More text -> the pieces that are whole now."""
        self._text += text
        found = []
        while (end := self._end()) is not None:
            found.append(self._text[:end])
            self._text, self._pauses = self._text[end:], self._again
        return found

    def finish(self) -> list[str]:
        """The rest of it."""
        rest, self._text = self._text, ""
        return [rest] if rest.strip() else []

    def _end(self) -> int | None:
        """Where the first piece of what is there ends; None where that is not known yet."""
        start = len(self._text) - len(self._text.lstrip())
        ways = [(_END, self._sentence), *([(_PAUSE, self._pause)] if self._pauses else [])]
        ends = [
            match.end()
            for pattern, least in ways
            for match in pattern.finditer(self._text, start, start + LONGEST + 1)
            if match.end() - start >= least and not (pattern is _END and _SHORT.search(self._text[start : match.end()]))
        ]
        if ends:
            return min(ends)
        if len(self._text) - start <= LONGEST:
            return None
        space = self._text.rfind(" ", start + SHORTEST, start + LONGEST)
        return space if space > 0 else start + LONGEST


class Clauses:
    """Takes text as it comes and gives what can be spoken: sentences, and parts of them that end at a pause."""

    def __init__(self) -> None:
        self._cutter = Cutter()

    def push(self, text: str) -> list[str]:
        """More text -> the clauses that are whole now."""
        return _speakable(self._cutter.push(text))

    def finish(self) -> list[str]:
        """The rest of it."""
        return _speakable(self._cutter.finish())


def clauses(texts: Iterable[str]) -> Iterator[str]:
    """The clauses of a text that comes in pieces, each as soon as it is whole."""
    cutter = Clauses()
    for text in texts:
        yield from cutter.push(text)
    yield from cutter.finish()


def _speakable(pieces: list[str]) -> list[str]:
    whole = [" ".join(piece.split()) for piece in pieces]
    return [piece for piece in whole if any(map(str.isalnum, piece))]
