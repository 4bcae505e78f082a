"""Direction inside a text: pauses, letters that are spelt out, and the part of SSML that is understood.

| written | what happens |
|---|---|
| `[pause 0.5s]`, `[pause 500ms]`, `<break time="500ms"/>`, `<break strength="strong"/>` | silence of that length |
| `…` or `...` between two longer halves | a breath of 0.3 s |
| `<say-as interpret-as="characters">FBI</say-as>` (`spell-out`, `verbatim`, `digits`) | letter by letter |
| `<sub alias="World Wide Web">WWW</sub>` | the alias is said |
| `<speak>`, `<p>`, `<s>` | they hold the text |

All other tags of SSML are refused by name.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from csm.errors import InputError

MOST_PAUSE = 10.0  # seconds
BREATH = 0.3  # seconds
HALF = 20  # letters on either side of an ellipsis that is a breath

STRENGTHS = dict(zip("none x-weak weak medium strong x-strong".split(), (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)))
USUAL_STRENGTH = list(STRENGTHS)[3]
SPELLING = ("characters", "spell-out", "verbatim", "digits")
HOLDING = ("speak", "p", "s")
UNDERSTOOD = ("break", "say-as", "sub", *HOLDING)
REFUSED = tuple("prosody emphasis phoneme audio mark lang token lexicon lookup desc metadata meta voice w".split())

_NAMES = {"-": "dash", ".": "dot", "/": "slash", "_": "underscore", "@": "at", "#": "hash", "&": "and", "+": "plus"}
_PAUSE = re.compile(r"\[\s*(?:pause|break)[ :=]+([-.,]?\d[\d.,]{0,12})\s*([a-z]{0,8})\s*\]", re.IGNORECASE)
_TAG = re.compile(
    rf"<(/?)({'|'.join(map(re.escape, (*UNDERSTOOD, *REFUSED)))})((?:\s[^<>]{{0,500}}?)?)(/?)>"
    r"|<\?xml[^<>]{0,200}\?>|<!--.{0,500}?-->",
    re.IGNORECASE | re.DOTALL,
)
_MARK = re.compile(rf"(?P<pause>{_PAUSE.pattern})|(?P<tag>{_TAG.pattern})", re.IGNORECASE | re.DOTALL)
_ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_SECONDS = re.compile(r"\+?(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*(ms|s)", re.IGNORECASE)
_UNITS = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 0.001, "": 1.0}
_UNITS |= {"m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0}
_ELLIPSIS = re.compile(r"(?<=[\w\"'”’)])\s*(?:…|\.{3,})\s+(?=[\w\"'“‘(])")


@dataclass(frozen=True)
class Direction:
    """What is said up to a pause: `words`, each with whether it is spelt out already, and the `pause` in seconds."""

    words: tuple[tuple[str, bool], ...]
    pause: float = 0.0


def marked(text: str) -> bool:
    """Whether there is any direction in a text that is followed when it is spoken."""
    return ("[" in text or "<" in text) and _MARK.search(text) is not None


def bare(text: str) -> str:
    """The text as it is shown where nothing can be directed, such as in subtitles: without its marks."""
    return " ".join(_MARK.sub(" ", text).split()) if marked(text) else text


def directed(text: str) -> Iterator[Direction]:
    """A text up to each of its pauses, in order. Raises `InputError` for what can't be followed, by its name."""
    if not marked(text):
        yield from _breaths([(text, False)])
        return
    tagged = _TAG.search(text) is not None
    words: list[tuple[str, bool]] = []
    inside, spelt, alias, end = "", False, "", 0
    for match in _MARK.finditer(text):
        words += _between(text[end : match.start()], tagged, spelt, alias)
        end = match.end()
        pause = None
        if match["pause"]:
            pause = _bracketed(match["pause"])
        else:
            tag = _TAG.fullmatch(match["tag"])
            name = (tag[2] or "").lower() if tag else ""
            if tag is None or not name:
                continue
            closing, about, empty = bool(tag[1]), dict(_attributes(tag[3])), bool(tag[4])
            if name in REFUSED:
                raise InputError(f"<{name}> is not understood here: leave the tag out. {_told()}", "tag")
            if name == "break":
                pause = 0.0 if closing else _break(about)
            elif name in HOLDING:
                words.append((" " if name != "p" else "\n", True))
            elif empty:
                raise InputError(f"<{name}/> holds nothing: put what it is about between <{name} …> and </{name}>.")
            elif closing:
                if inside != name:
                    raise InputError(f"</{name}> closes nothing: open it with <{name} …> first.", "tag")
                inside, spelt, alias = "", False, ""
            else:
                if inside:
                    raise InputError(f"<{inside}> is still open: close it with </{inside}> before <{name}>.", "tag")
                inside, (spelt, alias) = name, _opened(name, about)
                words += [(f" {alias} ", True)] if alias else []
        if pause:
            yield from _breaths(words, pause)
            words = []
    if inside:
        raise InputError(f"<{inside}> is never closed: end it with </{inside}>.", "tag")
    words += _between(text[end:], tagged, spelt, alias)
    yield from _breaths(words)


def _between(text: str, tagged: bool, spelt: bool, alias: str) -> list[tuple[str, bool]]:
    text = html.unescape(text) if tagged else text
    if alias or not text:
        return []
    return [(f" {spelled(text)} ", True)] if spelt else [(text, False)]


def spelled(text: str) -> str:
    """Letter by letter; signs by their names."""
    return " ".join(_NAMES.get(letter, letter) for letter in text if not letter.isspace())


def _breaths(words: list[tuple[str, bool]], pause: float = 0.0) -> Iterator[Direction]:
    """The same, cut behind each ellipsis that parts it in two longer halves."""
    said: list[tuple[str, bool]] = []
    behind = sum(len(text) for text, _ in words)
    before = 0
    for text, literal in words:
        at = 0
        for match in () if literal else _ELLIPSIS.finditer(text):
            size = match.end() - at
            if before + size >= HALF and behind - size >= HALF:
                yield Direction((*said, (text[at : match.end()].strip(), False)), BREATH)
                said, at, before = [], match.end(), 0
                behind -= size
        rest = text[at:]
        said.append((rest, literal))
        before, behind = before + len(rest), behind - len(rest)
    yield Direction(tuple(said), pause)


def _bracketed(mark: str) -> float:
    match = _PAUSE.fullmatch(mark)
    assert match is not None
    unit = match[2].lower()
    try:
        seconds = float(match[1].replace(",", ".")) * _UNITS[unit]
    except (ValueError, KeyError) as error:
        raise InputError(f"{mark} can't be read: write a pause as [pause 0.5s] or [pause 500ms].", "pause") from error
    return _bounded(seconds, mark)


def _break(about: dict[str, str]) -> float:
    if "time" in about:
        match = _SECONDS.fullmatch(about["time"].strip())
        if match is None:
            raise InputError(
                f'<break time="{about["time"][:40]}"/> can\'t be read: write <break time="500ms"/>.', "pause"
            )
        seconds = float(match[1]) * _UNITS[match[2].lower()]
        return _bounded(seconds, f'<break time="{about["time"]}"/>')
    strength = about.get("strength", USUAL_STRENGTH)
    if strength not in STRENGTHS:
        raise InputError(f"<break> has no strength “{strength[:40]}”: choose one of {', '.join(STRENGTHS)}.", "pause")
    return STRENGTHS[strength]


def _bounded(seconds: float, mark: str) -> float:
    if not 0 <= seconds <= MOST_PAUSE:
        raise InputError(f"{mark} is too long: a pause may last {MOST_PAUSE:.0f} seconds.", "pause")
    return seconds


def _opened(name: str, about: dict[str, str]) -> tuple[bool, str]:
    """Whether what follows is spelt, and what is said instead of it."""
    if name == "sub":
        if not any(map(str.isalnum, about.get("alias", ""))):
            raise InputError('<sub> has no alias: write what is said, as in <sub alias="World Wide Web">WWW</sub>.')
        return False, about["alias"]
    how = about.get("interpret-as", "").lower()
    if how not in SPELLING:
        raise InputError(
            f'<say-as interpret-as="{how[:40]}"> is not understood here: use one of {", ".join(SPELLING)}, or leave '
            "the tag out and have it read as it is written.",
            "tag",
        )
    return True, ""


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    for match in _ATTRIBUTE.finditer(text):
        yield match[1].lower(), html.unescape(match[2] if match[2] is not None else match[3])


def _told() -> str:
    return f"Understood are {', '.join(f'<{name}>' for name in UNDERSTOOD)}."
