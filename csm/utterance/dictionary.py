"""A pronunciation dictionary: how words are said that the model would say otherwise, `Łódź = woodge`, one a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from csm.errors import InputError
from csm.limits import LONGEST_DICTIONARY

MOST_ENTRIES = 2_000
LONGEST_ENTRY = 200  # letters of either side
DEEPEST = 20  # words that are said by way of others

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Dictionary:
    """Words and what is said for them. Those in small letters are found in any case, others as they are written.
    `written` is what it was read from."""

    entries: tuple[tuple[str, str], ...] = ()
    written: str = field(default="", compare=False)
    _said: Mapping[str, str] = field(init=False, repr=False, compare=False)
    _beginning: Mapping[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        beginning: dict[str, list[str]] = {}
        for word, _ in sorted(self.entries, key=lambda entry: -len(entry[0])):
            if first := _TOKEN.match(word):
                beginning.setdefault(first[0].casefold(), []).append(word)
        object.__setattr__(self, "_said", dict(self.entries))
        object.__setattr__(self, "_beginning", beginning)

    @classmethod
    def read(cls, text: str, name: str = "the dictionary") -> Dictionary:
        """From lines `word = how it is said`; blank lines and those that begin with # are skipped. What is said may
        have words of the dictionary in it. Raises `InputError` with the line, also for words that go round in a ring.
        """
        return _read(text, name)

    def respelt(self, text: str) -> str:
        """The text with what is said in place of the words, in time that grows with its length."""
        return self._replaced(text, self._said.__getitem__) if self._said else text

    def _replaced(self, text: str, said: Callable[[str], str]) -> str:
        told, end = [], 0
        for token in _TOKEN.finditer(text):
            if token.start() >= end and (word := self._at(text, token)):
                told += [text[end : token.start()], said(word)]
                end = token.start() + len(word)
        return "".join([*told, text[end:]])

    def _at(self, text: str, token: re.Match[str]) -> str | None:
        """The longest word of the dictionary that stands where this token begins."""
        begin = token.start()
        for word in self._beginning.get(token[0].casefold(), ()):
            end = begin + len(word)
            written = text[begin:end]
            alone = not (_inside(text[begin - 1 : begin], word[0]) or _inside(text[end : end + 1], word[-1]))
            if alone and (written == word or (word == word.lower() and written.lower() == word)):
                return word
        return None

    def _resolved(self, word: str, way: tuple[str, ...], where: str) -> str:
        """What is said for a word, with all words of the dictionary in it said, too."""
        if word in way or len(way) > DEEPEST:
            ring = " → ".join(f"“{one}”" for one in [*way[way.index(word) if word in way else -3 :], word])
            raise InputError(f"{where} never ends, because its words go round: {ring}.")
        said = self._said[word]
        if said == word:
            return said
        whole = self._replaced(said, lambda inner: self._resolved(inner, (*way, word), where))
        if len(whole) > 4 * LONGEST_ENTRY:
            raise InputError(f"{where} grows too long with the words of the others: shorten it.")
        return whole


@lru_cache(maxsize=64)
def _read(text: str, name: str) -> Dictionary:
    if len(text) > LONGEST_DICTIONARY:
        raise InputError(
            f"{name[:1].upper()}{name[1:]} is longer than {LONGEST_DICTIONARY:,} letters: leave words out."
        )
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
    flat = Dictionary(tuple(found.items()))
    entries = ((word, flat._resolved(word, (), f"Line {lines[word]} of {name}")) for word in found)
    return Dictionary(tuple(entries), text)


def _inside(beside: str, edge: str) -> bool:
    """Whether a letter beside a word makes it a part of a longer one."""
    return bool(beside) and (beside.isalnum() or beside == "_") and (edge.isalnum() or edge == "_")


NO_WORDS = Dictionary()
