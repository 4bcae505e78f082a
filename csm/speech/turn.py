"""A spoken turn, and the takes of one while they are made: what a conversation gives to whoever has it speak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from csm.engine import Stream, Together


@dataclass
class Turn:
    """One spoken turn. `codes` int64 (frames, K) are the truth; `audio` float32 (1920 frames / speed,) is their sound,
    marked unless it was asked for without, and `unmarked` (1920 frames,) the same for work inside the program, at the
    model's own pace.

    `state` is `ended` (by the model), `capped` (by the longest length or the budget) or `stopped` (by the caller).
    It takes `positions`: text, frames and the zero frame. Turn number `heard_from` (from 0) is the first that it heard:
    those before had left the window.
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


class Takes:
    """The takes of one turn while they are spoken side by side, in the order of their seeds."""

    def __init__(self, together: Together, turn: Callable[[Stream], Turn]) -> None:
        self.turns: list[Turn] = []
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

    def finish(self) -> list[Turn]:
        """What they have said, whether all have ended or not; their sound is unmarked."""
        if not self.turns:
            self._together.end()
            self.turns = [self._turn(stream) for stream in self._together.streams]
        return self.turns

    def keep(self, number: int) -> None:
        """Go on from this one."""
        self.kept = number
