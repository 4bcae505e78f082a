"""Screenplays in Fountain (https://fountain.io/syntax): names in capitals above what is said; the rest is unsaid."""

from __future__ import annotations

import re

from csm.conversation.scripts.labels import MAX_LABEL, fitted
from csm.conversation.scripts.pieces import Found, Said, clean, numbered, together

_SCENE = re.compile(r"(?:INT|EXT|EST|INT\.?/EXT|I/E)[. ].*|\.[^.].*", re.IGNORECASE)
_CUE = re.compile(r"(@?)([^()\[\]:]{1,60}?)\s*((?:\([^()]{1,60}\)\s*)*)\^?")
_BESIDE = re.compile(r"\(([^()]{1,60})\)")
_SENTENCE_ENDS = tuple(".!?…,;:-")
_EMPHASIS = re.compile(r"\*{1,3}([^*]+)\*{1,3}|(?<!\w)_([^_]+)_(?!\w)")
_ASIDE = re.compile(r"\(.*\)")


def read(text: str) -> Found | None:
    """A screenplay; None for what is none: it has a name above speech, and a scene or another such name."""
    lines = [(number, clean(raw)) for number, raw in numbered(_without_boneyard(text))]
    cues = {index for index in range(len(lines)) if _is_cue(lines, index)}
    scenes = sum(1 for _, line in lines if _SCENE.fullmatch(line))
    if not cues or (not scenes and len(cues) < 2):
        return None
    groups: list[list[Said]] = []
    speaking = False
    for index, (number, line) in enumerate(lines):
        if not line:
            speaking = False
        elif index in cues:
            cue = _CUE.fullmatch(line)
            assert cue is not None
            groups.append([Said(fitted(cue[2].strip(), number), "", number, tuple(_BESIDE.findall(cue[3])))])
            speaking = True
        elif not speaking:
            groups.append([Said(None, "", number, (_told(line),))])
        elif _ASIDE.fullmatch(line):
            groups[-1].append(Said(None, "", number, (line[1:-1].strip(),)))
        else:
            groups[-1].append(Said(None, _plain(line), number))
    return Found(list(map(together, groups)), "a screenplay", True)


def _is_cue(lines: list[tuple[int, str]], index: int) -> bool:
    """Whether a line names who speaks below it: in capitals or behind an @, a blank line above, none below."""
    line = lines[index][1]
    blank_above = index == 0 or not lines[index - 1][1]
    if not line or not blank_above or index + 1 == len(lines) or not lines[index + 1][1]:
        return False
    if not (line[0] == "@" or line[:2] == line[:2].upper()) or lines[index + 1][1].isupper():
        return False
    cue = _CUE.fullmatch(line)
    if cue is None or _SCENE.fullmatch(line) or len(name := cue[2].strip()) > MAX_LABEL:
        return False
    capitals = name.upper() == name and any(map(str.isalpha, name)) and name.lower() != name
    return bool(cue[1]) or (capitals and not name.endswith(_SENTENCE_ENDS) and name[0] not in ">~=#!.<")


def _told(line: str) -> str:
    """A line that nobody says, without the signs of its kind."""
    return _plain(line.lstrip(">#=!~. ").rstrip("< ")).strip("[]") or line


def _plain(line: str) -> str:
    return _EMPHASIS.sub(lambda match: match[1] or match[2], line).lstrip("~").strip()


def _without_boneyard(text: str) -> str:
    """What was struck out, between /* and */, on one line of its own with as many line ends as before."""
    kept: list[str] = []
    end = 0
    while (begin := text.find("/*", end)) >= 0 and (close := text.find("*/", begin + 2)) >= 0:
        struck = text[begin + 2 : close]
        kept += [text[end:begin], " ".join(struck.split()), "\n" * struck.count("\n")]
        end = close + 2
    return "".join([*kept, text[end:]])
