"""What happens while a session speaks, as plain data; from the session to whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from csm.conversation.parsing import Line
from csm.conversation.takes import Turn


@dataclass(frozen=True)
class TurnReport:
    """One turn of the report; `start` and `end` are seconds in the finished conversation, exact to the sample.

    `trimmed` seconds of trailing silence were left out of the sound: at speed 1 `frames` * 0.08 s = end - start +
    trimmed.
    `seed` and `reason` are those of the take that was kept, out of `takes`; it heard the turns from number
    `heard_from` (from 0) on. `words`: what the model read, where that is not what was typed. `stale`: what it heard
    has changed since; `other_settings`: the seed, the temperature or top-k that it was drawn with.
    """

    speaker: str
    text: str
    start: float
    end: float
    frames: int
    state: str
    positions_prefilled: int
    trimmed: float = 0.0
    seed: int = 0
    takes: int = 1
    reason: str = ""
    stale: bool = False
    heard_from: int = 0
    other_settings: bool = False
    words: str = ""


@dataclass(frozen=True)
class TurnStarted:
    """Turn `index` (from 0) of `total` begins."""

    index: int
    total: int
    line: Line


@dataclass(frozen=True)
class TurnChunk:
    """The next float32 (num_samples,) at 24 kHz of turn `index`, marked, to be played at once behind the last.

    With several takes there is one chunk, the kept take's, once it is chosen.
    """

    index: int
    audio: Tensor


@dataclass(frozen=True)
class TurnFinished:
    """`audio` float32 (num_samples,) is the turn before marking: to listen to on the way, not to give out.

    Its text took `text_positions`. `spoken` is the turn with its takes, and `sounds` holds the whole sound of each new
    take by the take's key:
    `Session.apply` brings both into a session in another process.
    """

    index: int
    total: int
    turn: TurnReport
    audio: Tensor
    spoken: Turn
    sounds: Mapping[str, Tensor] = field(default_factory=dict)
    text_positions: int = 0


@dataclass(frozen=True)
class Comparing:
    """Several takes of turn `index` (from 0) are made at once: `frames` of each so far, `heard` of them listened to."""

    index: int
    frames: int = 0
    heard: int = 0


@dataclass(frozen=True)
class Waiting:
    """The model speaks for others: `ahead` of them must be done first, which should take `seconds`."""

    ahead: int
    seconds: float


@dataclass(frozen=True)
class Performed:
    """`audio` float32 (num_samples,) at 24 kHz is the whole conversation, marked once, where it was not heard live, and
    otherwise empty; `report` is plain JSON data,
    with a `notice` when the oldest turns left the window on the way. `session` is who spoke."""

    audio: Tensor
    report: dict[str, Any]
    session: Any = None


Event = Waiting | TurnStarted | TurnChunk | Comparing | TurnFinished | Performed
