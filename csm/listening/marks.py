"""Which parts of a recording carry the watermark: what the check of a file tells, beyond yes and no."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.listening.speech import STEADY, levels
from csm.watermark import THRESHOLD, detect

PIECE = 4 * SAMPLE_RATE  # samples that are looked at together; marked speech of this length is found
SURE = 0.75  # above it the answer is called sure
UNSURE = 0.45  # below it, too


@dataclass(frozen=True)
class Passage:
    """Seconds `start` to `end` of a recording, and the confidence, 0 to 1, that they carry the mark."""

    start: float
    end: float
    confidence: float

    @property
    def marked(self) -> bool:
        return self.confidence >= THRESHOLD


def listen(wave: Tensor) -> Iterator[Passage]:
    """Look for the mark in float32 (num_samples,) at 24 kHz, 4 seconds after 4 seconds.

    A steady tone or hum reads as marked to the detector; it is no speech, and counts as 0.
    """
    count = max(1, round(len(wave) / PIECE))
    at = 0
    for piece in wave.tensor_split(count):
        steady = len(piece) >= SAMPLE_RATE and float(levels(piece).std()) < STEADY
        confidence = 0.0 if steady else detect(piece).confidence
        yield Passage(at / SAMPLE_RATE, (at + len(piece)) / SAMPLE_RATE, confidence)
        at += len(piece)


def joined(passages: list[Passage]) -> list[Passage]:
    """Neighbours that say the same taken together, with the highest confidence of each."""
    whole: list[Passage] = []
    for passage in passages:
        if whole and whole[-1].marked == passage.marked:
            last = whole.pop()
            passage = Passage(last.start, passage.end, max(last.confidence, passage.confidence))
        whole.append(passage)
    return whole


def verdict(passages: list[Passage]) -> str:
    """One or two plain sentences on what was found."""
    if not passages:
        return "There is no sound in it."
    parts = joined(passages)
    marked = [part for part in parts if part.marked]
    confidence = max(part.confidence for part in parts)
    number = f"the detector's confidence is {confidence:.2f} of 1"
    if not marked:
        if confidence <= UNSURE:
            return f"No watermark was found; {number}, far below the {THRESHOLD} that count."
        return f"No watermark was found, but this is not quite sure: {number}, and {THRESHOLD} would count."
    sure = "It carries" if confidence >= SURE else "It probably carries"
    if len(parts) == 1:
        return f"{sure} the watermark, all of it: a machine made it; {number}."
    where = ", ".join(f"{clock(part.start)} to {clock(part.end)}" for part in marked[:8])
    more = f" and {len(marked) - 8} more" if len(marked) > 8 else ""
    return f"{sure} the watermark in part, at {where}{more}: a machine made that; {number}."


def clock(seconds: float) -> str:
    """`1:05` for 65 seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
