"""Where the accelerator is asked for: the only use of `spaces.GPU`, between the web and what speaks.

On ZeroGPU the decorated function runs in a forked process: the model has to be in its closure, and what it yields
is pickled. So it writes sound to files, yields plain data, and reports refused input as data too. Anywhere else the
decorator does nothing and the same code runs in the handler's thread.

Either way a job first waits in the model's `Queue`, in the process that serves, and says so every now and then.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spaces
from spaces.config import Config

from csm.audio import write_audio
from csm.conversation import Line
from csm.errors import InputError
from csm.generator import Generator
from csm.judges import LazyJudges
from csm.reading import read_aloud
from csm.settings import Settings
from csm.studio import Performed, TurnFinished, TurnReport, TurnStarted, perform
from csm.takes import NOBODY
from csm.voices import Voice
from csm.web.waiting import Queue

LETTERS_PER_SECOND = 12.0
START_SECONDS = 15.0
MORE_TAKES = 0.3  # what one more take of a turn costs, in takes: they are sampled in one batch
LONGEST_LEASE = 300
NEWS_SECONDS = 0.25  # how often a job that waits says so
GIVEN_UP = "This was stopped before its turn came; nothing was spoken."


class Stoppable:
    """Work with a `folder` of its own. A file at `stop_file` ends it at the next frame: another process sees it too."""

    folder: Path

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"


@dataclass(frozen=True)
class Job(Stoppable):
    """All that one performance needs; every user has their own. `folder` receives the sound."""

    lines: list[Line]
    voices: dict[str, Voice]
    settings: Settings
    folder: Path


@dataclass(frozen=True)
class Reading(Stoppable):
    """All that one text read aloud needs."""

    texts: list[str]
    voice: Voice
    settings: Settings
    folder: Path


@dataclass(frozen=True)
class Waiting:
    """`ahead` others come first, which should take `seconds`."""

    ahead: int
    seconds: float


@dataclass(frozen=True)
class Sound:
    """The next marked sound of a reading, float32 (num_samples,) at 24 kHz; counts are those of `Piece`."""

    wave: np.ndarray
    frames: int
    text_positions: int


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


Update = Waiting | TurnStarted | TurnDone | Sound | Conversation | Refused
Speak = Callable[[Job], Iterator[Update]]
Read = Callable[[Reading], Iterator[Update]]


def on_accelerator(work: Callable[..., Any], duration: Callable[..., int] | int) -> Callable[..., Any]:
    """`work` where the accelerator is, for `duration` seconds. On ZeroGPU that is another process, and its inputs and
    results are pickled."""
    return spaces.GPU(duration=duration)(work)


def expected_seconds(texts: Iterable[str], settings: Settings) -> float:
    """How much sound these turns should give, each take after the first counted at its cost."""
    seconds = sum(min(1.0 + len(text) / LETTERS_PER_SECOND, settings.max_turn_seconds) for text in texts)
    return seconds * (1 + MORE_TAKES * (settings.takes - 1))


def speech_seconds(job: Job | Reading) -> float:
    """How much sound the text should give."""
    texts = job.texts if isinstance(job, Reading) else [line.text for line in job.lines]
    return expected_seconds(texts, job.settings)


def lease_seconds(job: Job | Reading) -> int:
    """How long to ask for an accelerator: the sound that the text should give, at real time, and a start."""
    return min(LONGEST_LEASE, math.ceil(START_SECONDS + speech_seconds(job)))


def warm_up_beside(generator: Generator, voices: dict[str, Voice]) -> threading.Thread | None:
    """In a thread of its own, do what the first listener would otherwise wait for: compile, record, and encode these
    voices by having them say a word to nobody. On ZeroGPU there is no accelerator to do it on: None."""
    if Config.zero_gpu:
        return None

    def warm_up() -> None:
        try:
            generator.engine.warm_up()
            lines = [Line(name, "Hello.", number) for number, name in enumerate(voices, 1)]
            for _ in perform(generator, lines, voices, Settings(max_turn_seconds=1)):
                pass
        except Exception as error:  # whoever clicks will be told, if it still is so
            warnings.warn(f"The model could not be warmed up: {error}", stacklevel=1)

    thread = threading.Thread(target=warm_up, name="warm-up", daemon=True)
    thread.start()
    return thread


def speaking_with(generator: Generator, queue: Queue | None = None, judges: LazyJudges | None = None) -> Speak:
    """A function that performs jobs with this model, each when its turn in `queue` comes; `judges` compare takes."""
    waiting = Queue() if queue is None else queue
    listeners = judges or LazyJudges()

    @spaces.GPU(duration=lease_seconds)
    def speak(job: Job) -> Iterator[Update]:
        try:
            heard_by = listeners.get() if job.settings.takes > 1 else NOBODY
            for event in perform(generator, job.lines, job.voices, job.settings, job.stop_file.exists, heard_by):
                if isinstance(event, TurnFinished):
                    yield TurnDone(event.index, event.total, event.turn)
                elif isinstance(event, Performed):
                    path = job.folder / "conversation.wav" if len(event.audio) else None
                    if path:
                        write_audio(path, event.audio)
                    yield Conversation(path, event.report)
                elif isinstance(event, TurnStarted):
                    yield event
        except InputError as error:
            yield Refused(str(error))

    def work(job: Job) -> Iterator[Update]:
        if job.settings.takes > 1:
            listeners.get()  # here, so that on ZeroGPU the forked process finds them loaded
        yield from speak(job)

    return lambda job: _in_turn(waiting, job, lambda: work(job))


def reading_with(generator: Generator, queue: Queue | None = None) -> Read:
    """A function that reads texts aloud with this model, each when its turn in `queue` comes.

    What it returns raises `QueueFull` at its first step when too many wait already.
    """
    waiting = Queue() if queue is None else queue

    @spaces.GPU(duration=lease_seconds)
    def read(job: Reading) -> Iterator[Update]:
        try:
            for piece in read_aloud(generator, job.texts, job.voice, job.settings, stop=job.stop_file.exists):
                yield Sound(piece.wave.numpy(), piece.frames, piece.text_positions)
        except InputError as error:
            yield Refused(str(error))

    return lambda job: _in_turn(waiting, job, lambda: read(job))


def _in_turn(queue: Queue, job: Job | Reading, work: Callable[[], Iterator[Update]]) -> Iterator[Update]:
    with queue.join(speech_seconds(job)) as place:
        while not place.wait(NEWS_SECONDS):
            if job.stop_file.exists():
                yield Refused(GIVEN_UP)
                return
            yield Waiting(place.ahead, place.expected_wait)
        yield from work()
