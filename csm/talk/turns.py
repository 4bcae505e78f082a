"""Whose turn it is, from the probabilities of speech alone: between voice activity and the talk. No clock, no sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from csm.talk.options import Turns

WINDOW_SECONDS = 0.032  # of sound for each probability
BEGIN = 3  # windows of speech in a row that begin a turn; where the second is `SURE`, two do: 64 ms, for interrupting
SURE = 0.95
RESUME = 2  # windows of speech that end a pause
PAUSE = 2  # windows of silence after which it is worth finding out what was said, and whether it sounds whole: 64 ms
SHORTEST = 5  # windows of speech that a turn has at least: a cough has fewer
LONGEST = round(40 / WINDOW_SECONDS)  # windows after which a turn is over, whatever is heard
HYSTERESIS = 0.15  # how far below the threshold silence begins


class Kind(Enum):
    """What happened: a pause may be the end, and nobody knows yet."""

    BEGUN = "begun"
    PAUSED = "paused"
    RESUMED = "resumed"
    ENDED = "ended"
    DROPPED = "dropped"  # it was too short to be speech


@dataclass(frozen=True)
class Moment:
    """Something happened at the end of window `window`, counted from 0; of a beginning it is where speech began, of an
    end where it ended."""

    kind: Kind
    window: int


class TurnDetector:
    """Reads one probability for each window and tells what it means. `quiet` counts the windows of silence so far."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._quiet_end = max(1, math.ceil(turns.silence / WINDOW_SECONDS - 1e-9))
        self._pause = min(PAUSE, self._quiet_end)
        self._window = 0
        self._begun: int | None = None  # the window in which the turn began
        self._run = self._voiced = self.quiet = 0  # windows: of speech in a row, of speech, of silence at the end
        self._paused = False

    def push(self, probability: float) -> list[Moment]:
        """The next window."""
        window, self._window = self._window, self._window + 1
        speech = probability >= self._turns.threshold
        silence = probability < self._turns.threshold - HYSTERESIS
        self._run = self._run + 1 if speech else 0
        if self._begun is None:
            sure = self._run == BEGIN - 1 and probability >= max(SURE, self._turns.threshold)
            if self._run < BEGIN and not sure:
                return []
            self._begun, self._voiced, self.quiet = window - self._run + 1, self._run, 0
            return [Moment(Kind.BEGUN, self._begun)]
        self._voiced += speech
        moments = []
        if self._paused and self._run >= RESUME:
            self._paused, self.quiet = False, 0
            moments.append(Moment(Kind.RESUMED, window))
        elif silence or self._paused:
            self.quiet += 1
        else:
            self.quiet = 0
        if self.quiet >= self._pause and not self._paused:
            self._paused = True
            moments.append(Moment(Kind.PAUSED, window))
        if self.quiet >= self._quiet_end or window - self._begun >= LONGEST:
            moments += self.end()
        return moments

    def end(self) -> list[Moment]:
        """The turn is over, because somebody knows it: what was said sounds whole."""
        if self._begun is None:
            return []
        kind = Kind.ENDED if self._voiced >= SHORTEST else Kind.DROPPED
        moment = Moment(kind, self._window - self.quiet)
        self.forget()
        return [moment]

    def forget(self) -> None:
        """As if nobody had spoken; windows are counted on."""
        self._begun, self._paused = None, False
        self._run = self._voiced = self.quiet = 0
