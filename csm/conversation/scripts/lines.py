"""Scripts of lines, with and without labels: the form that people type, and what they paste from elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from csm.conversation.scripts.directions import staged
from csm.conversation.scripts.labels import Peeled, headword, named_like, peel, plain, unmistakable
from csm.conversation.scripts.pieces import Found, Said, clean, has_words, numbered, together
from csm.errors import InputError

_BLANK = Peeled(None, "", "")
_SLOTS = re.compile(r"(?<=\S)\s+(?=\[S\d{1,2}\])")


def read(text: str) -> Found:
    """A script of lines. Raises `InputError` when a label has nothing after it."""
    return labelled([(number, clean(part)) for number, raw in numbered(text) for part in _slots(raw)])


def _slots(raw: str) -> list[str]:
    """A line, cut before each `[S1]` in it."""
    return _SLOTS.split(raw) if "[S" in raw else [raw]


def as_it_stands(text: str) -> Found:
    """Every line spoken as it is written, but for labels that leave no doubt: single letters, “Speaker 1”, and names
    that come back."""
    lines = [(number, line, plain(line)) for number, raw in numbered(text) if (line := clean(raw))]
    times = _counted(peeled for _, _, peeled in lines)
    said: list[Said] = []
    for number, line, peeled in lines:
        label = peeled.label
        if label and has_words(peeled.text) and (unmistakable(label) or times[label.casefold()] > 1):
            said.append(Said(label, peeled.text, number))
        else:
            said.append(Said(None, line, number))
    return Found(said)


def labelled(lines: list[tuple[int, str]]) -> Found:
    """Cleaned lines -> their labels and texts. Raises `InputError` when a label has nothing after it."""
    taken = [(number, line, peel(line) if line else _BLANK) for number, line in lines]
    times = _counted(peeled for _, _, peeled in taken)
    named = any(peeled.bracketed and _named(peeled.label, times) for _, _, peeled in taken)
    believed = [_Line(number, line, _believed(peeled, times, named)) for number, line, peeled in taken]
    blocks = _blocks(believed)
    groups: list[list[Said]] = []
    guessed = in_block = gap = False
    for index, (one, before) in enumerate(zip(believed, taken)):
        peeled = one.peeled
        alone = peeled.label is not None and not (peeled.text or peeled.directions) and _bare_next(believed, index)
        if alone and index not in blocks:
            peeled = Peeled(None, one.line, one.line)
        if not one.line:
            gap = True
            continue
        guessed |= peeled.dressed or (before[2].label is not None and peeled.label is None)
        if peeled.label is None:
            words = Said(groups[-1][0].label if in_block else None, peeled.text, one.number)
            if in_block and not gap:
                groups[-1].append(words)
            else:
                groups.append([words])
        else:
            in_block = alone
            if not alone and not has_words(peeled.text) and not peeled.directions:
                raise nothing_after(peeled.label, one.number)
            groups.append([Said(peeled.label, peeled.text, one.number, peeled.directions)])
            once = times[peeled.label.casefold()] == 1 and not unmistakable(peeled.label)
            guessed |= alone or once
        gap = False
    said = [one for one in map(together, groups) if one.text or one.directions]
    return Found(said, guessed=guessed)


def nothing_after(label: str, number: int) -> InputError:
    """The refusal of a label that stands alone."""
    return InputError(f"Line {number} has no text after “{label}:”; write what {label} says or delete it.", "no_text")


@dataclass(frozen=True)
class _Line:
    number: int
    line: str
    peeled: Peeled


def _counted(lines: Iterable[Peeled]) -> Counter[str]:
    return Counter(peeled.label.casefold() for peeled in lines if peeled.label)


def _believed(peeled: Peeled, times: Counter[str], named: bool) -> Peeled:
    """The line with its label, or without one that is only the beginning of its text. `named`: brackets hold names."""
    label = peeled.label
    if label is None or peeled.sure:
        return peeled
    back = times[label.casefold()] > 1
    if peeled.bracketed:
        believed = not staged(label) and (back or (named and named_like(label) and not headword(label)))
    else:
        believed = back or not headword(label)
    return peeled if believed else Peeled(None, peeled.bare, peeled.bare, dressed=peeled.dressed)


def _named(label: str | None, times: Counter[str]) -> bool:
    """Whether this comes back, and is nothing that is done or heard."""
    return label is not None and times[label.casefold()] > 1 and not staged(label) and not headword(label)


def _blocks(lines: list[_Line]) -> set[int]:
    """The labels that stand on a line of their own, above what is said; empty unless the script is written so."""
    alone = [
        index
        for index, one in enumerate(lines)
        if one.peeled.label is not None and not one.peeled.text and _bare_next(lines, index)
    ]
    if len(alone) > 1 or (alone and unmistakable(lines[alone[0]].peeled.label or "")):
        return set(alone)
    return set()


def _bare_next(lines: list[_Line], index: int) -> bool:
    """Whether the next line that is not blank has words and no label."""
    for one in lines[index + 1 : index + 4]:
        if one.line:
            return one.peeled.label is None and has_words(one.line)
    return False
