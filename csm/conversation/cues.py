"""Turns cut into subtitle cues that can be read: at most two lines of 42 letters, timed by the frames of the sound."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.config import FRAME_SIZE
from csm.conversation.script import Span

LINE = 42  # letters
LINES = 2
NEAR = 8  # frames to either side of where a cue should end, in which it ends at the quietest
LEAST = 6  # frames of a cue, where the turn is long enough

_BREAKS = (
    re.compile(r"[.!?…][\"'”’)]*(?= )|[。！？]"),
    re.compile(r"[,;:—–][\"'”’)]*(?= )|[，、；：]"),
    re.compile(r"(?= )"),
)


@dataclass(frozen=True)
class Cue:
    """What is shown at once: `lines` of text from sample `start` to sample `end`; `first` of its turn or not."""

    speaker: str
    lines: tuple[str, ...]
    start: int
    end: int
    first: bool


def cues(spans: list[Span], sound: Tensor | None = None, prefixed: bool = False) -> list[Cue]:
    """The cues of spoken turns. Turns without any sound have none.

    `sound` is the whole conversation, float32 (num_samples,): with it a cue ends where it is quiet; without, where its
    share of the letters ends. Either way at the end of a frame. `prefixed`: the first line begins with the speaker.
    """
    made: list[Cue] = []
    for span in spans:
        if span.end <= span.start:
            continue
        label = f"{span.speaker}: " if prefixed else ""
        texts = pieces(label + span.text)
        ends = _ends([len(text) for text in texts], span, sound)
        starts = [span.start, *ends[:-1]]
        for number, (text, start, end) in enumerate(zip(texts, starts, ends)):
            made.append(Cue(span.speaker, lines(text), start, end, number == 0))
    return made


def pieces(text: str) -> list[str]:
    """A turn's text, cut into what two lines hold: at sentences where that leaves no crumbs, at pauses, at words."""
    cut: list[str] = []
    while len(lines(text)) > LINES or len(text) > LINE * LINES + 1:
        at = _cut(text, LINE * LINES + 1)
        while len(lines(text[:at].strip())) > LINES:
            at = _cut(text, at - 1)
        cut.append(text[:at].strip())
        text = text[at:].strip()
    return [*cut, text]


def lines(text: str) -> tuple[str, ...]:
    """A text in lines of at most 42 letters, two of them about as long as each other where two do."""
    if len(text) <= LINE:
        return (text,)
    spaces = [match.start() for match in re.finditer(" ", text)]
    fitting = [at for at in spaces if at <= LINE and len(text) - at - 1 <= LINE]
    if fitting:
        middle = min(fitting, key=lambda at: abs(2 * at - len(text)))
        return text[:middle], text[middle + 1 :]
    before = [at for at in spaces if 0 < at <= LINE]
    at = before[-1] if before else LINE
    return text[:at].strip(), *lines(text[at:].strip())


def _cut(text: str, most: int) -> int:
    """Where to cut within the first `most` letters: behind the last sentence or pause in their second half, or word."""
    window = text[: most + 1]
    for breaks, least in zip(_BREAKS, (most // 2, most // 2, 1)):
        ends = [match.end() for match in breaks.finditer(window) if least <= match.end() <= most]
        if ends:
            return ends[-1]
    return min(most, LINE)


def _ends(sizes: list[int], span: Span, sound: Tensor | None) -> list[int]:
    """The sample at which each cue of a turn ends, the last with the turn itself."""
    frames, total = (span.end - span.start) // FRAME_SIZE, sum(sizes)
    loud = None
    if sound is not None and frames:
        heard = sound[span.start : span.start + frames * FRAME_SIZE].view(frames, FRAME_SIZE)
        loud = heard.float().square().mean(dim=1)
    ends: list[int] = []
    done = last = 0
    for number, size in enumerate(sizes[:-1], 1):
        done += size
        left = len(sizes) - number
        least = min(last + LEAST, max(last + 1, frames - left))
        most = max(least, frames - left)
        wanted = min(max(round(frames * done / total), least), most)
        low, high = max(least, wanted - NEAR), min(most, wanted + NEAR)
        if loud is not None and high > low:
            wanted = low + int(torch.argmin(loud[low - 1 : high]))
        ends.append(min(span.start + wanted * FRAME_SIZE, span.end))
        last = wanted
    return [*ends, span.end]
