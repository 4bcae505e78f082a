"""Where the accelerator is asked for: the only use of `spaces.GPU`, between the page and `studio.perform`.

On ZeroGPU the decorated function runs in a forked process: the model has to be in its closure, and what it yields
is pickled. So it writes sound to files, yields plain data, and reports refused input as data too. Anywhere else the
decorator does nothing and the same code runs in the handler's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spaces

from csm.audio import write_audio
from csm.conversation import Line
from csm.errors import InputError
from csm.generator import Generator
from csm.studio import Performed, Settings, TurnFinished, TurnReport, TurnStarted, perform
from csm.voices import Voice

LETTERS_PER_SECOND = 12.0
START_SECONDS = 15.0
LONGEST_LEASE = 300


@dataclass(frozen=True)
class Job:
    """All that one performance needs; every user has their own.

    `folder` receives the sound; a file at `folder / "stop"` ends the performance at the next frame.
    """

    lines: list[Line]
    voices: dict[str, Voice]
    settings: Settings
    folder: Path

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"


@dataclass(frozen=True)
class TurnDone:
    """Turn `index` (from 0) of `total` has been spoken."""

    index: int
    total: int
    turn: TurnReport


@dataclass(frozen=True)
class Conversation:
    """The marked sound as a wav file (None if there is no sound), and the report of the command line's `--json`."""

    path: Path | None
    report: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """The input can't be used; `sentence` is for the user."""

    sentence: str


Update = TurnStarted | TurnDone | Conversation | Refused
Speak = Callable[[Job], Iterator[Update]]


def lease_seconds(job: Job) -> int:
    """How long to ask for an accelerator: the sound that the text should give, at real time, and a start."""
    longest = job.settings.max_turn_seconds
    speech = sum(min(1.0 + len(line.text) / LETTERS_PER_SECOND, longest) for line in job.lines)
    return min(LONGEST_LEASE, math.ceil(START_SECONDS + speech))


def speaking_with(generator: Generator) -> Speak:
    """A function that performs jobs with this model."""

    @spaces.GPU(duration=lease_seconds)
    def speak(job: Job) -> Iterator[Update]:
        try:
            for event in perform(generator, job.lines, job.voices, job.settings, stop=job.stop_file.exists):
                if isinstance(event, TurnFinished):
                    yield TurnDone(event.index, event.total, event.turn)
                elif isinstance(event, Performed):
                    path = job.folder / "conversation.wav" if len(event.audio) else None
                    if path:
                        write_audio(path, event.audio)
                    yield Conversation(path, event.report)
                else:
                    yield event
        except InputError as error:
            yield Refused(str(error))

    return speak
