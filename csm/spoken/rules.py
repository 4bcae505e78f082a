"""What every kind of rule is made of: a pattern, what is said in its place, and how both are put into a text.

Patterns are bounded and begin where a run of their characters begins, so that a rule takes time in proportion to the
text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Said = Callable[[re.Match[str]], str | None]  # None: this is something else, leave it
Rule = tuple[re.Pattern[str], Said]

# A number as it is written: grouped by commas, plain, or beginning with its point. Longer runs of digits are codes.
NUMBER = r"(?:\d{1,3}(?:,\d{2,3}){0,11},\d{3}(?!\d)(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})"
START = r"(?<![\w.])(?<!\d,)"  # where a number may begin
END = r"(?!\w)"


def rule(pattern: str, said: Said | str, flags: int = 0) -> Rule:
    """`said` in place of what `pattern` matches."""
    if isinstance(said, str):
        words = said
        return re.compile(pattern, flags), lambda match: words
    return re.compile(pattern, flags), said


def apply(rules: Iterable[Rule], text: str) -> str:
    """The text with every rule applied, in their order."""
    for pattern, said in rules:
        text = pattern.sub(lambda match, said=said: _apart(match, said), text)  # type: ignore[misc]
    return text


def _apart(match: re.Match[str], said: Said) -> str:
    """What is said, with a space where a letter or digit of the text would touch it."""
    words = said(match)
    if words is None:
        return match[0]
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    left = " " if _said(before) and _said(words[:1]) else ""
    return f"{left}{words}{' ' if _said(after) and _said(words[-1:]) else ''}"


def _said(letter: str) -> bool:
    return letter.isalpha() or letter.isdecimal()


def ends_sentence(match: re.Match[str]) -> bool:
    """Whether a full stop that an abbreviation ended with also ended the sentence."""
    return re.match(r"[\"'”’)\]]*(?:\s*$|\s+[\"'“‘(]?[A-Z])", match.string[match.end() : match.end() + 40]) is not None
