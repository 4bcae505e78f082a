"""What happens in a talk, as plain data; from the talk to whoever shows it: the page, the Realtime API, a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from csm.talk.language import Call
from csm.talk.memory import Item


@dataclass(frozen=True)
class SpeechBegan:
    """The user began to speak `milliseconds` after the talk's first sample; it will be the item `item`."""

    item: str
    milliseconds: int


@dataclass(frozen=True)
class SpeechEnded:
    """The user has said all of item `item`."""

    item: str
    milliseconds: int


@dataclass(frozen=True)
class Dropped:
    """What the user let hear was no speech: there will be no such item."""

    item: str


@dataclass(frozen=True)
class Committed:
    """What was heard is item `item` now, behind `previous`."""

    item: str
    previous: str | None


@dataclass(frozen=True)
class ItemAdded:
    """An item stands in the talk, behind `previous`; it is whole, unless it is an answer or waits for its words."""

    item: Item
    previous: str | None


@dataclass(frozen=True)
class Transcribed:
    """The words of the user's item; `seconds` of sound."""

    item: Item
    seconds: float


@dataclass(frozen=True)
class AnswerBegan:
    """An answer is thought about; it will be `spoken`, or text alone."""

    answer: str
    spoken: bool = True


@dataclass(frozen=True)
class Words:
    """The next words of an answer, before their sound."""

    answer: str
    item: Item
    text: str


@dataclass(frozen=True)
class Sound:
    """The next float32 (num_samples,) at 24 kHz of an answer, marked."""

    answer: str
    item: Item
    wave: np.ndarray


@dataclass(frozen=True)
class Called:
    """The language model wants a function called, as item `item`."""

    answer: str
    item: Item
    call: Call


@dataclass(frozen=True)
class Cost:
    """What an answer took. `positions` of CSM's `most` are in use; `steps` are seconds since the user's last sound."""

    positions: int = 0
    most: int = 0
    frames: int = 0
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerEnded:
    """An answer is `completed`, `cancelled` (by the user's voice where `interrupted`) or `failed` with a sentence."""

    answer: str
    state: str
    items: list[Item]
    interrupted: bool = False
    sentence: str = ""
    code: str = ""
    cost: Cost = Cost()


@dataclass(frozen=True)
class Truncated:
    """What came after `milliseconds` of an answer was not heard, and is forgotten."""

    item: Item
    milliseconds: int


@dataclass(frozen=True)
class Deleted:
    """An item has left."""

    item: str


@dataclass(frozen=True)
class Held:
    """The model speaks for others: `ahead` of them must be done first."""

    ahead: int


@dataclass(frozen=True)
class Failed:
    """Something can't be done, in one sentence; the talk goes on."""

    sentence: str
    code: str = ""


Event = (
    SpeechBegan
    | SpeechEnded
    | Dropped
    | Committed
    | ItemAdded
    | Transcribed
    | AnswerBegan
    | Words
    | Sound
    | Called
    | AnswerEnded
    | Truncated
    | Deleted
    | Held
    | Failed
)
