"""Scripts out of subtitles: SubRip and WebVTT, whose cues become turns."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from csm.conversation.scripts.lines import labelled
from csm.conversation.scripts.pieces import Found, Said, clean, has_words, numbered, together

_STAMP = r"(?:\d{1,3}:)?\d{1,2}:\d\d[.,]\d{1,3}"
_TIMING = re.compile(rf"\s*{_STAMP}\s*-->\s*{_STAMP}(?:\s.*)?")
_VOICE = re.compile(r"<v(?:\.[^\s>]{0,80})?\s{1,20}([^>]{1,80})>")
_TAGS = re.compile(r"</?(?:[a-zA-Z][^<>]{0,80}|\d[\d:.]{3,12})?>|\{\\[^{}]{0,40}\}")
_DASH = re.compile(r"\s*[-–—]\s*(?=\S)")
_ASIDE = ("NOTE", "STYLE", "REGION")
_ENDS = ".!?…\"'”’)]♪。！？"


def read(text: str) -> Found | None:
    """Subtitles; None for what is none. A sentence that goes on in the next cue is one turn."""
    if "-->" not in text:
        return None
    lines = numbered(text)
    webvtt = text.lstrip().startswith("WEBVTT")
    if not webvtt and not any("-->" in raw and _TIMING.fullmatch(raw) for _, raw in lines):
        return None
    said: list[Said] = []
    for cue in _cues(lines, webvtt):
        said += _cue(cue)
    found = labelled_all(said)
    named = any(one.label for one in found)
    return Found(_joined(found), "WebVTT subtitles" if webvtt else "SubRip subtitles", True, alternate=not named)


def labelled_all(said: list[Said]) -> list[Said]:
    """The same with the labels that the texts begin with, `Anna: Hello.`, where the format named nobody."""
    if any(one.label for one in said):
        return said
    return labelled([(one.number, one.text) for one in said]).said


def _cues(lines: list[tuple[int, str]], webvtt: bool) -> list[list[tuple[int, str]]]:
    """The lines of each cue, without its number and its times."""
    cues: list[list[tuple[int, str]]] = [[]]
    aside, timed = webvtt, False  # whether the block at hand is none of a cue, and whether its times were there
    for number, raw in lines:
        if _TIMING.fullmatch(raw):
            # What stands right above the times is the cue's number or name, unless it is the last cue's text.
            if cues[-1] and (not timed or cues[-1][-1][1].strip().isdigit()):
                cues[-1].pop()
            cues.append([])
            aside, timed = False, True
        elif not raw.strip():
            cues.append([])
            aside = timed = False
        elif webvtt and not timed and not cues[-1] and raw.split()[0] in _ASIDE:
            aside = True
        elif not aside:
            cues[-1].append((number, raw))
    return [cue for cue in cues if cue]


def _cue(lines: list[tuple[int, str]]) -> list[Said]:
    """One cue -> what each says in it."""
    number = lines[0][0]
    dashed = [_DASH.match(raw) is not None for _, raw in lines]
    if len(lines) > 1 and all(dashed):
        return [one for line in lines for one in _cue([(line[0], _DASH.sub("", line[1], count=1))])]
    text = " ".join(raw for _, raw in lines)
    parts = _VOICE.split(text)
    said = [Said(None, parts[0], number), *(Said(who, what, number) for who, what in zip(parts[1::2], parts[2::2]))]
    cleaned = [replace(one, label=_name(one.label), text=clean(html.unescape(_TAGS.sub("", one.text)))) for one in said]
    return [one for one in cleaned if has_words(one.text)]


def _name(label: str | None) -> str | None:
    return None if label is None else clean(html.unescape(label))


def _joined(said: list[Said]) -> list[Said]:
    """Cues that don't end a sentence, with those that go on with it."""
    groups: list[list[Said]] = []
    for one in said:
        if groups and groups[-1][-1].text[-1:] not in _ENDS and one.label in (None, groups[-1][0].label):
            groups[-1].append(one)
        else:
            groups.append([one])
    return list(map(together, groups))
