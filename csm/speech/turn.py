"""A spoken turn and its pieces, and the takes of one while they are made: what a conversation gives to whoever has it
speak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.engine import Stream, Together


@dataclass
class Piece:
    """What was said at a stretch: a turn, or a part of a long one. `codes` int64 (frames, K) are the truth; `audio`
    float32 (1920 frames / speed,) is their sound, marked unless it was asked for without, and `unmarked`
    (1920 frames,) the same for work inside the program, at the model's own pace. Silence behind it lasts `pause`
    seconds at that pace.

    `state` is `ended` (by the model), `capped` (by the longest length or the budget) or `stopped` (by the caller).
    It takes `positions`: text, frames and the zero frame. Piece number `heard_from` (from 0) is the first that it
    heard: those before had left the window. `embedding`, float32 (D,), is whose voice it is in, if the codec is told.
    """

    speaker: int
    text: str
    codes: Tensor
    audio: Tensor
    state: str
    positions_prefilled: int
    positions: int
    heard_from: int
    unmarked: Tensor
    pause: float = 0.0
    speed: float = 1.0
    embedding: Tensor | None = None

    @property
    def silence(self) -> Tensor:
        """What is heard behind it, float32 (num_samples,)."""
        return silence(self.pause / self.speed)


@dataclass
class Turn:
    """One spoken turn: its `pieces`, one unless it is long or has pauses in it, and what they come to.

    `lead` seconds of silence open it. Turn number `heard_from` (from 0) is the first that it heard.
    """

    speaker: int
    text: str
    pieces: list[Piece]
    heard_from: int
    lead: float = 0.0

    @property
    def codes(self) -> Tensor:
        """int64 (frames, K)."""
        return torch.cat([piece.codes for piece in self.pieces])

    @property
    def audio(self) -> Tensor:
        """float32 (num_samples,) with the silence of its pauses."""
        return self._sound([piece.audio for piece in self.pieces], self.pieces[0].speed)

    @property
    def unmarked(self) -> Tensor:
        """`audio` without the mark, at the model's own pace."""
        return self._sound([piece.unmarked for piece in self.pieces], 1.0)

    @property
    def state(self) -> str:
        """How its last piece ended, unless one of them was capped."""
        states = [piece.state for piece in self.pieces]
        return "capped" if "capped" in states and states[-1] == "ended" else states[-1]

    @property
    def positions_prefilled(self) -> int:
        return sum(piece.positions_prefilled for piece in self.pieces)

    @property
    def positions(self) -> int:
        return sum(piece.positions for piece in self.pieces)

    def _sound(self, waves: list[Tensor], speed: float) -> Tensor:
        if len(waves) == 1 and not self.lead and not self.pieces[0].pause:
            return waves[0]
        told = [silence(self.lead / speed)]
        for wave, piece in zip(waves, self.pieces):
            told += [wave, silence(piece.pause / speed)]
        return torch.cat(told)


class Takes:
    """The takes of one piece while they are spoken side by side, in the order of their seeds."""

    def __init__(self, together: Together, turn: Callable[[Stream], Piece]) -> None:
        self.turns: list[Piece] = []
        self.kept: int | None = None
        self._together, self._turn = together, turn

    @property
    def speaking(self) -> bool:
        """Whether any of them goes on."""
        return not all(stream.done for stream in self._together.streams)

    @property
    def frames(self) -> int:
        """Frames that the longest of them has so far."""
        return max(len(stream.frames) for stream in self._together.streams)

    def step(self) -> None:
        """Wait for the next frame."""
        self._together.step()

    def finish(self) -> list[Piece]:
        """What they have said, whether all have ended or not; their sound is unmarked."""
        if not self.turns:
            self._together.end()
            self.turns = [self._turn(stream) for stream in self._together.streams]
        return self.turns

    def keep(self, number: int) -> None:
        """Go on from this one."""
        self.kept = number


def silence(seconds: float) -> Tensor:
    """float32 (num_samples,)."""
    return torch.zeros(round(seconds * SAMPLE_RATE))
