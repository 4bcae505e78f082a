"""Scripts as data: JSON lists of speaker and text, JSON lines, and CSV with such columns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from csm.conversation.scripts.labels import fitted
from csm.conversation.scripts.pieces import Found, Said, clean
from csm.errors import InputError

SPEAKER = "speaker speaker_name speaker_id name role who character voice from author person actor host user".split()
TEXT = (
    "text content line dialogue dialog utterance message words said says sentence speech transcript value body".split()
)
LISTS = (
    "dialogue dialog conversation script turns lines messages segments transcript items podcast utterances data results"
).split()
DELIMITERS = ",;\t|"

_FENCE = "```"
_BEGINS = re.compile(r"\s*(?:\[\s*(?:\{|\"|\]|\[\s*\")|\{\s*(?:\"|\}))")


def read_json(text: str) -> Found | None:
    """JSON in any of its usual forms, in a Markdown fence or not; None for what is none. Raises `InputError`."""
    first, stripped = 1, text.strip()
    if stripped.startswith(_FENCE) and stripped.endswith(_FENCE) and "\n" in stripped:
        begin = text.index(_FENCE)
        begin = text.index("\n", begin) + 1
        first += text.count("\n", 0, begin)
        text = text[begin : text.rindex(_FENCE)]
    if not _BEGINS.match(text):
        return None
    said = [_item(value, number) for value, number in _values(text, first)]
    return Found([one for one in said if one.text], "JSON", True)


def read_csv(text: str) -> Found | None:
    """A table whose first row names a column of speakers and one of texts, or None. Raises `InputError`."""
    head = text.lstrip().partition("\n")[0]
    for delimiter in DELIMITERS:
        names = [cell.strip().strip('"').strip().casefold() for cell in head.split(delimiter)]
        speaker = next((names.index(name) for name in SPEAKER if name in names), None)
        column = next((names.index(name) for name in TEXT if name in names), None)
        if len(names) > 1 and speaker is not None and column is not None:
            return Found(list(_rows(text, delimiter, speaker, column)), "a table", True)
    return None


def _rows(text: str, delimiter: str, speaker: int, column: int) -> Iterator[Said]:
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    number, headed = 1, False
    try:
        for cells in rows:
            begin, number = number, rows.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not headed:
                headed = True
            elif len(cells) <= max(speaker, column):
                raise InputError(f"Line {begin} of the table has too few fields: it lacks the speaker or the text.")
            elif words := clean(cells[column]):
                label = fitted(cells[speaker], begin) if cells[speaker].strip() else None
                yield Said(label, words, begin)
    except csv.Error as error:
        raise InputError(f"Line {number} of the table can't be read ({error}): close its quotes.") from error


def _values(text: str, first: int) -> Iterator[tuple[Any, int]]:
    """Each value of the list that is the script, with its line."""
    decoder, begin = json.JSONDecoder(), len(text) - len(text.lstrip())
    try:
        if text[begin] == "{":
            whole, _ = decoder.raw_decode(text, begin)
            listed = next((name for name in LISTS if isinstance(whole.get(name), list)), None)
            if listed is None:
                yield from _lines(text, begin, first)
                return
            opened = re.compile(rf'"{listed}"\s*:\s*\[').search(text, begin)
            assert opened is not None
            yield from _listed(text, opened.end() - 1, first, decoder)
        else:
            end = yield from _listed(text, begin, first, decoder)
            if (behind := _behind(text, end)) < len(text):
                raise json.JSONDecodeError("there is text behind the list", text, behind)
    except json.JSONDecodeError as error:
        number, why = error.lineno + first - 1, error.msg[:1].lower() + error.msg[1:]
        raise InputError(f"Line {number}: this JSON can't be read ({why}); mend it.") from error
    except RecursionError as error:
        raise InputError(f"Line {first}: this JSON has too many lists in lists to be a script.") from error


def _lines(text: str, begin: int, first: int) -> Iterator[tuple[Any, int]]:
    """Objects one behind the other, as in JSON lines."""
    decoder, number, last = json.JSONDecoder(), first, 0
    while begin < len(text):
        number += text.count("\n", last, begin)
        last = begin
        value, end = decoder.raw_decode(text, begin)
        yield value, number
        begin = _behind(text, end)


def _listed(text: str, begin: int, first: int, decoder: json.JSONDecoder) -> Generator[tuple[Any, int], None, int]:
    """Each value of the list that begins there, with its line -> the place behind the list."""
    last, number, at = 0, first, _behind(text, begin + 1)
    while text[at : at + 1] != "]":
        number += text.count("\n", last, at)
        last = at
        value, end = decoder.raw_decode(text, at)
        yield value, number
        at = _behind(text, end)
        if text[at : at + 1] == ",":
            at = _behind(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("expecting a comma or the list's end", text, min(at, len(text)))
    return at + 1


def _behind(text: str, at: int) -> int:
    """The next place that is not white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _item(value: Any, number: int) -> Said:
    """One value of the list. Raises `InputError` with its line."""
    if isinstance(value, str):
        return Said(None, clean(value), number)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
        return Said(fitted(value[0], number), clean(value[1]), number)
    if isinstance(value, dict):
        fields = {str(name).casefold(): one for name, one in value.items()}
        words = next((fields[name] for name in TEXT if isinstance(fields.get(name), str)), None)
        who = next((fields[name] for name in SPEAKER if isinstance(fields.get(name), str | int)), None)
        if words is not None:
            return Said(None if who in (None, "") else fitted(who, number), clean(words), number)
        if len(fields) == 1 and isinstance(only := next(iter(value.values())), str) and not fields.keys() & {*SPEAKER}:
            return Said(fitted(next(iter(value)), number), clean(only), number)
    raise InputError(f"Line {number}: this entry has no text; give it a “speaker” and a “text”.")
