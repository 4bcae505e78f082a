"""The bytes of a script file to its text: what its encoding is, and a note of what had to be assumed."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from csm.errors import InputError

MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
FOREIGN = (
    (b"PK\x03\x04", "a Word document or another archive"),
    (b"%PDF", "a PDF"),
    (b"{\\rtf", "rich text"),
    (b"\xd0\xcf\x11\xe0", "an old Word document"),
)
LOOKED_AT = 4_096  # bytes in which UTF-16 without a mark shows its zeros
_CONTROLS = frozenset(map(chr, range(32))) - frozenset("\t\n\v\f\r\x1a\x1b\x1c\x1d\x1e\x1f")


@dataclass(frozen=True)
class Decoded:
    """A script's text; `note` says in one sentence what was assumed of its encoding, empty where nothing was."""

    text: str
    note: str = ""


def decoded(data: bytes, name: str = "The script") -> Decoded:
    """UTF-8, UTF-16 or UTF-32, with a byte order mark or without, and else Windows-1252, which is a guess.

    Raises `InputError` for what is no text.
    """
    for begins, what in FOREIGN:
        if data.startswith(begins):
            raise InputError(f"{name} is {what}; save it as plain text.")
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return Decoded(_read(data[len(mark) :], encoding, name))
    if unmarked := _without_mark(data[:LOOKED_AT]):
        return Decoded(_read(data, unmarked, name), f"{name} was read as {unmarked.upper()[:6]}, which it doesn't say.")
    try:
        return Decoded(_checked(data.decode("utf-8"), name))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        # Five bytes mean nothing in Windows-1252; Latin-1 knows them as controls, which are left out later.
        text = _checked("".join(_western(data)), name)
        shown = " ".join(text.split("\n")[line - 1].split())[:40]
        return Decoded(text, f"{name} is not UTF-8 and was read as Windows-1252: see line {line}, “{shown}”.")


def _read(data: bytes, encoding: str, name: str) -> str:
    try:
        return _checked(data.decode(encoding), name)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is damaged: byte {error.start + 1} can't be read as {encoding.upper()}.") from error


def _without_mark(data: bytes) -> str | None:
    """UTF-16 by its zeros: every other byte of Latin letters, and of line ends in any script."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if len(data) < 4 or len(data) % 2 or max(even, odd) * 8 < len(data) // 2 or min(even, odd) * 8 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _western(data: bytes) -> list[str]:
    try:
        return [data.decode("cp1252")]
    except UnicodeDecodeError:
        return [bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data]


def _checked(text: str, name: str) -> str:
    """The text, unless it has what no text has."""
    if any(control in text for control in _CONTROLS):
        raise InputError(f"{name} is not text: give a file of plain text, subtitles, JSON or CSV.")
    return text
