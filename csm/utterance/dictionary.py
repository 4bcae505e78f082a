"""A pronunciation dictionary: how words are said that the model would say otherwise, `Łódź = woodge`, one a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from csm.errors import InputError

MOST_ENTRIES = 2_000
LONGEST_ENTRY = 200  # letters of either side
DEEPEST = 20  # words that are said by way of others


@dataclass(frozen=True)
class Dictionary:
    """Words and what is said for them. Those in small letters are found in any case, others as they are written.
    `written` is what it was read from."""

    entries: tuple[tuple[str, str], ...] = ()
    written: str = field(default="", compare=False)
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _said: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = sorted((word for word, _ in self.entries), key=len, reverse=True)
        ways = "|".join(f"(?i:{re.escape(word)})" if word == word.lower() else re.escape(word) for word in words)
        object.__setattr__(self, "_pattern", re.compile(rf"(?<!\w)(?:{ways})(?!\w)") if words else None)
        object.__setattr__(self, "_said", dict(self.entries))

    @classmethod
    def read(cls, text: str, name: str = "the dictionary") -> Dictionary:
        """From lines `word = how it is said`; blank lines and those that begin with # are skipped. What is said may
        have words of the dictionary in it. Raises `InputError` with the line, also for words that go round in a ring.
        """
        found: dict[str, str] = {}
        lines: dict[str, int] = {}
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            word, equals, said = (" ".join(part.split()) for part in line.partition("="))
            if not equals or not any(map(str.isalnum, word)) or not any(map(str.isalnum, said)):
                raise InputError(f"Line {number} of {name} can't be read: write it as word = how it is said.")
            if max(len(word), len(said)) > LONGEST_ENTRY:
                raise InputError(f"Line {number} of {name} is longer than {LONGEST_ENTRY} letters a side: shorten it.")
            if re.search(r"[<>\[\]]", said):
                raise InputError(f"Line {number} of {name} has brackets in what is said: write words alone.")
            if word in found:
                raise InputError(f"Line {number} of {name} says “{word}” again: it stands in line {lines[word]}.")
            found[word], lines[word] = said, number
            if len(found) > MOST_ENTRIES:
                raise InputError(f"Line {number} of {name} is one too many: at most {MOST_ENTRIES:,} words fit.")
        flat = cls(tuple(found.items()))
        return cls(tuple((word, flat._resolved(word, (), f"Line {lines[word]} of {name}")) for word in found), text)

    def respelt(self, text: str) -> str:
        """The text with what is said in place of the words."""
        return self._pattern.sub(lambda match: self._said[self._word(match[0])], text) if self._pattern else text

    def _word(self, written: str) -> str:
        """The word of the dictionary that stands so in a text."""
        if written in self._said:
            return written
        return next((word for word in (written.lower(), written.casefold()) if word in self._said), self.entries[0][0])

    def _resolved(self, word: str, way: tuple[str, ...], where: str) -> str:
        """What is said for a word, with all words of the dictionary in it said, too."""
        if word in way or len(way) > DEEPEST:
            ring = " → ".join(f"“{one}”" for one in [*way[way.index(word) if word in way else -3 :], word])
            raise InputError(f"{where} never ends, because its words go round: {ring}.")
        said = self._said[word]
        if said == word or self._pattern is None:
            return said
        whole = self._pattern.sub(lambda match: self._resolved(self._word(match[0]), (*way, word), where), said)
        if len(whole) > 4 * LONGEST_ENTRY:
            raise InputError(f"{where} grows too long with the words of the others: shorten it.")
        return whole


NO_WORDS = Dictionary()
