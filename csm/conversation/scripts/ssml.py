"""A whole document of SSML, `<speak>…</speak>`: its paragraphs are turns of one voice; what is marked inside of them is
followed when they are spoken (`csm.utterance.marks`)."""

from __future__ import annotations

import re

from csm.conversation.scripts.pieces import Found, Said, clean
from csm.errors import InputError

_OPENS = re.compile(r"\s*(?:<\?xml[^<>]{0,200}\?>\s*)?<speak(?:\s[^<>]{0,500})?>", re.IGNORECASE)
_CLOSES = re.compile(r"</speak\s*>\s*$", re.IGNORECASE)
_PARAGRAPH = re.compile(r"</?p(?:\s[^<>]{0,200})?>", re.IGNORECASE)


def read(text: str) -> Found | None:
    """A document of SSML; None for what is none. Raises `InputError` for one that never ends."""
    if (opens := _OPENS.match(text)) is None:
        return None
    closes = _CLOSES.search(text, max(opens.end(), len(text) - 200))
    if closes is None:
        line = text.count("\n", 0, opens.end()) + 1
        raise InputError(f"Line {line}: <speak> is never closed; end the text with </speak>.")
    said, at = [], opens.end()
    for end, behind in [
        *((match.start(), match.end()) for match in _PARAGRAPH.finditer(text, at)),
        (closes.start(), 0),
    ]:
        begin = at + len(text[at:end]) - len(text[at:end].lstrip())
        if words := clean(text[at:end].replace("\n", " ")):
            said.append(Said(None, words, text.count("\n", 0, begin) + 1))
        at = behind
    return Found(said, "SSML", alternate=False)
