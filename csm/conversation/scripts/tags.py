"""Scripts whose speakers are tags, as language models are asked to write them: `<Person1>…</Person1>`."""

from __future__ import annotations

import re

from csm.conversation.scripts.labels import fitted
from csm.conversation.scripts.pieces import Found, Said, clean
from csm.errors import InputError

# Tags that say how something is spoken or shown, never who speaks.
OTHERS = frozenset(
    "speak break say-as prosody emphasis sub phoneme p s w audio mark lang token lexicon lookup desc metadata "
    "voice v c b i u ruby rt em strong a br div span html body head title ul ol li table tr td th h1 h2 h3 h4 h5 "
    "h6 code pre font script style think thinking scratchpad".split()
)
_TAG = re.compile(r"<(/?)([A-Za-z][\w .-]{0,40})>")
_SLOT = re.compile(r"(?:person|speaker|host|guest|voice)[ _-]?\d{1,2}", re.IGNORECASE)


def read(text: str) -> Found | None:
    """A script of tags; None for what is none. Raises `InputError` for tags that don't fit, with their line."""
    if "<" not in text:
        return None
    tags = [match for match in _TAG.finditer(text) if match[2].casefold() not in OTHERS]
    closed = {match[2].casefold() for match in tags if match[1]}
    tags = [match for match in tags if match[2].casefold() in closed or _SLOT.fullmatch(match[2])]
    if not tags:
        return None
    said: list[Said] = []
    name, end, line = "", 0, 1
    for match in tags:
        here = line + text.count("\n", end, match.start())
        between = text[end : match.start()]
        if match[1]:
            if match[2].casefold() != name.casefold() or not name:
                raise InputError(f"Line {here}: </{match[2]}> closes nothing; open it with <{match[2]}> first.")
            if words := clean(" ".join(between.split())):
                begin = line + len(between[: len(between) - len(between.lstrip())].splitlines()[1:])
                said.append(Said(fitted(name, line), words, begin))
            name = ""
        else:
            if name:
                raise InputError(f"Line {here}: <{name}> is still open; close it with </{name}> before <{match[2]}>.")
            said += _bare(between, line)
            name = match[2]
        end, line = match.end(), here
    if name:
        raise InputError(f"Line {line}: <{name}> is never closed; end it with </{name}>.")
    return Found([*said, *_bare(text[end:], line)], "tags", True)


def _bare(text: str, first: int) -> list[Said]:
    """Lines outside of all tags."""
    lines = [(number, clean(raw)) for number, raw in enumerate(text.split("\n"), first)]
    return [Said(None, words, number) for number, words in lines if words]
