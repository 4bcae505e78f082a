"""Which voice each speaker of a page has: the chosen one, or that of the speaker who was renamed, or else the usual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from csm.conversation.parsing import Line
from csm.conversation.script import same_blocks
from csm.web.endpoints import SLOTS, default_voices

Said = tuple[str, str]  # a speaker's label and what it says


class Casting:
    """The names of the voices that the speakers of one page were given, as its script changes.

    Labels that are gone are remembered: a speaker whose lines were cut and put back has its voice again.
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._words_of: dict[str, str] = {}  # of a new label, the one that said its lines before

    def follow(self, before: Sequence[Said], lines: Sequence[Line], names: dict[str, str]) -> None:
        """The script `before` has become `lines`: a voice follows its speaker to another label.

        That is so when the old label is gone and all its lines that are still there are said by one label that was
        not there before, or that came in its place line by line. `names` are the voices so far, by label.
        """
        now = [(line.speaker, line.text) for line in lines]
        was_there, is_there = {label for label, _ in before}, {label for label, _ in now}
        pairs = _same_lines(before, now)
        for new in is_there - was_there:
            self._words_of[new] = _only(old for old, label in pairs if label == new)
        for gone in was_there - is_there:
            heir = _only(label for old, label in pairs if old == gone)
            if heir and self._words_of.get(heir) == gone and names.get(gone):
                self._given[heir] = names[gone]

    def cast(self, labels: list[str], chosen: dict[str, str], offered: list[str]) -> dict[str, str]:
        """The name of the voice of each of `labels`: what was `chosen` in the form, then what it had before, then the
        usual one. Only the first may be a name that is not `offered`."""
        self._given |= {label: chosen[label] for label in labels if chosen.get(label) in offered}
        usual = usual_voices(labels, offered)
        given = {label: self._given[label] for label in labels if self._given.get(label) in offered}
        return {label: chosen.get(label) or given.get(label) or usual[label] for label in labels}


def usual_voices(labels: list[str], offered: list[str]) -> dict[str, str]:
    """The voice of each speaker who was given none: A and B have the first two whoever speaks first, other names what
    is left of those, then the next on offer; when all are taken they are shared."""
    first = dict(zip(SLOTS, default_voices()))
    usual = {label: first[label] for label in labels if label in first}
    free = [name for slot, name in first.items() if slot not in usual]
    free += [name for name in offered if name not in first.values()] or list(first.values())
    for number, label in enumerate(label for label in labels if label not in first):
        usual[label] = free[number % len(free)]
    return usual


def _same_lines(before: Sequence[Said], now: Sequence[Said]) -> set[tuple[str, str]]:
    """(label before, label now) of the lines whose text is in both scripts, in the same order."""
    old, new = [text for _, text in before], [text for _, text in now]
    blocks = same_blocks(old, new)
    return {(before[at + offset][0], now[to + offset][0]) for at, to, size in blocks for offset in range(size)}


def _only(labels: Iterable[str]) -> str:
    """The one label among them; empty when there are several or none."""
    found = set(labels)
    return found.pop() if len(found) == 1 else ""
