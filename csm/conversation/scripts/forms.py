"""The one recogniser of formats: which family a script belongs to, and what it says."""

from __future__ import annotations

from collections.abc import Callable

from csm.conversation.scripts import fountain, lines, ssml, subtitles, tables, tags
from csm.conversation.scripts.pieces import Found

# The most telling first; each says None for what is not its own, and lines are everybody's.
FAMILIES: tuple[Callable[[str], Found | None], ...] = (
    tables.read_json,
    subtitles.read,
    ssml.read,
    tags.read,
    tables.read_csv,
    fountain.read,
)


def recognised(text: str) -> Found:
    """A script of any format, in time that grows with its length. Raises `InputError` with the line."""
    for family in FAMILIES:
        if (found := family(text)) is not None:
            return found
    return lines.read(text)
