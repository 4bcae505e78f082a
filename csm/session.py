"""One user's conversation: turns with takes that can be redone, chosen and carried on from; from script to sound.

A session owns all that changes and is given the generator with each call. It keeps the KV cache of what was said
while it lives; pickled or reopened it has none and reads the codes in again. It is not for two threads at once.
"""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from csm import watermark
from csm.config import SAMPLE_RATE
from csm.conversation import MAX_SPEAKERS, Line
from csm.errors import InputError
from csm.events import Event, Performed, Settings, TurnChunk, TurnFinished, TurnReport, TurnStarted
from csm.frames import Segment
from csm.generator import Conversation, ConversationFull, Generator
from csm.generator import Turn as Spoken
from csm.takes import (
    Judges,
    Pace,
    Portable,
    Take,
    Turn,
    codes_key,
    judge,
    output_sound,
    rank,
    trimmed_length,
)
from csm.voices import Voice, load_prompt

MOST_KEPT = 24  # takes of one turn; the oldest beyond them are forgotten
NEXT_SEED = 1_000_003  # from one take's seed to the next of the same turn
BUSY = "This conversation is being spoken: stop it or wait for its end, then change it."

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Prompt(Portable):
    """A voice as the model hears it: codes int64 (frames, K) of its recording."""

    voice: Voice
    codes: Tensor


@dataclass(frozen=True)
class Span:
    """Where a spoken turn lies in the whole conversation: samples at 24 kHz, `end` excluded."""

    index: int
    speaker: str
    text: str
    start: int
    end: int


@dataclass
class Spent:
    """What speaking has cost so far: seconds, samples made (takes that were not kept included), positions read in."""

    seconds: float = 0.0
    samples: int = 0
    prefilled: int = 0
    first_audio: float | None = None


@dataclass
class _Memory:
    """A conversation whose KV cache holds the turns named in `said`: what was said before turn 0, 1, 2, ..."""

    generator: Generator
    conversation: Conversation
    said: list[str]


@dataclass
class _Work:
    """One call of `speak` or `redo`: what it was asked, and how it goes."""

    generator: Generator
    stop: Stop
    judges: Judges
    live: bool
    seed: int | None = None
    started: float = field(default_factory=time.perf_counter)


class Session:
    """Turns, voices and settings of one conversation.

    `turns` may be read at any time; change them through the methods. `slots` numbers the speakers for the model.
    `model` names who made the takes (None before the first).
    """

    def __init__(self, lines: Sequence[Line], voices: dict[str, Voice], settings: Settings = Settings()) -> None:
        self.settings = settings
        self.voices = dict(voices)
        self.turns = [Turn(line.speaker, line.text) for line in lines]
        self.slots: dict[str, int] = {}
        self.model: str | None = None
        self.codec: str | None = None
        self.prompts: dict[str, Prompt] = {}
        self.spent = Spent()
        self._sounds: dict[str, Tensor] = {}
        self._memory: _Memory | None = None
        self._busy = False
        self._number_speakers()

    # Speaking

    def speak(
        self,
        generator: Generator,
        start: int = 0,
        stop: Stop = lambda: False,
        judges: Judges = Judges(),
        live: bool = True,
    ) -> Iterator[Event]:
        """Speak turn `start` (from 0) and all after it, each with a new take, and yield what happens.

        `TurnStarted`, `TurnChunk`s (unless not `live`) and `TurnFinished` for each turn, `Performed` last. All input
        is checked before the first turn. `stop` is asked at every frame; a turn that is stopped keeps what was made,
        and closing the iterator does the same. A turn that no longer fits ends the performance with a `notice`.
        Raises `InputError` for what can't be spoken and when a turn before `start` has not been spoken.
        """
        if not self.turns:
            raise InputError("The script is empty: write at least one line.")
        self._known(start)
        yield from self._run(_Work(generator, stop, judges, live), range(start, len(self.turns)))

    def redo(
        self,
        generator: Generator,
        index: int,
        seed: int | None = None,
        stop: Stop = lambda: False,
        judges: Judges = Judges(),
        live: bool = True,
    ) -> Iterator[Event]:
        """Speak turn `index` alone once more with the next seed, or with `seed`; yields what `speak` yields.

        Turns before it stay as they are and are not read in again; those after it become stale, because they were
        said after another take. `speak(generator, index + 1)` carries on from there.
        """
        self._known(index)
        if seed is not None:
            replace(self.settings, seed=seed)  # refuses an impossible one
        yield from self._run(_Work(generator, stop, judges, live, seed), range(index, index + 1))

    # Changing

    def keep(self, index: int, take: int) -> Turn:
        """Let take `take` (from 0) of turn `index` be heard, with the text it speaks. Raises `InputError`."""
        self._idle()
        turn = self._known(index)
        if not 0 <= take < len(turn.takes):
            raise InputError(f"Turn {index + 1} has {len(turn.takes)} takes; there is no take {take + 1}.")
        self.turns[index] = replace(turn, chosen=take, text=turn.takes[take].text)
        return self.turns[index]

    def edit(self, index: int, text: str | None = None, speaker: str | None = None) -> Turn:
        """Change what turn `index` says or who says it. It then waits to be spoken; its takes can still be kept,
        unless the speaker is another one. Raises `InputError` for a text without words and for a ninth speaker."""
        raise NotImplementedError

    def rewrite(self, lines: Sequence[Line]) -> None:
        """Take a changed script: turns that say the same, in the same order, keep their takes; new ones wait."""
        raise NotImplementedError

    def set_voice(self, speaker: str, voice: Voice) -> None:
        """Give `speaker` another voice. What has been spoken stays, and is stale."""
        self._idle()
        self.voices[speaker] = voice

    def apply(self, event: Event) -> None:
        """Bring what happened to this session's copy in another process into this one."""
        raise NotImplementedError

    # Reading

    @property
    def speakers(self) -> list[str]:
        """The labels of those who speak, each once, in order of their first turn."""
        return list(dict.fromkeys(turn.speaker for turn in self.turns))

    def stale(self, index: int) -> bool:
        """Whether the kept take of turn `index` was said after something else than what stands before it now."""
        raise NotImplementedError

    @property
    def first_open(self) -> int | None:
        """The first turn that waits or is stale: where to carry on from. None when all is said."""
        raise NotImplementedError

    def spans(self) -> list[Span]:
        """Where each spoken turn lies in the whole conversation, in order."""
        raise NotImplementedError

    def sound(self, generator: Generator, index: int, take: int | None = None) -> Tensor:
        """Unmarked float32 (num_samples,) of a turn's kept take, or of another: for work inside the program."""
        raise NotImplementedError

    def clip(self, generator: Generator, index: int, take: int | None = None) -> Tensor:
        """Marked float32 (num_samples,) of a turn's kept take, or of another: for a player of its own."""
        raise NotImplementedError

    def whole(self, generator: Generator) -> Tensor:
        """The conversation as it stands, float32 (num_samples,), marked once: what leaves the program."""
        raise NotImplementedError

    def report(self, generator: Generator) -> dict[str, Any]:
        """Plain JSON data on the conversation as it stands, as `--json` writes it."""
        raise NotImplementedError


@dataclass(frozen=True)
class TurnPositions:
    """Positions of one turn: its text exactly, its sound as spoken, or as expected while it waits."""

    text: int
    audio: int
    expected: bool


@dataclass(frozen=True)
class Positions:
    """Who takes how many of the model's `limit` positions. `prompts` by speaker; `fits` turns fit from the start."""

    limit: int
    prompts: dict[str, int]
    turns: list[TurnPositions]
    fits: int

    @property
    def total(self) -> int:
        return sum(self.prompts.values()) + sum(turn.text + turn.audio for turn in self.turns)


def positions(generator: Generator, session: Session) -> Positions:
    """The position budget of a session before anything is spoken; no model runs."""
    raise NotImplementedError
