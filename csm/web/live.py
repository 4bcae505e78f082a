"""A session that is spoken for a page: it waits its turn with the model, then tells what happens while it speaks.

On ZeroGPU the session is sent to another process and what happens there is brought into this one's copy; anywhere
else it is the same object and keeps its KV cache from one call to the next.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.errors import InputError
from csm.events import Event
from csm.generator import Generator
from csm.judges import installed_judges
from csm.session import Session
from csm.takes import NOBODY, Judges
from csm.web.gpu import (
    GIVEN_UP,
    LETTERS_PER_SECOND,
    LONGEST_LEASE,
    NEWS_SECONDS,
    START_SECONDS,
    Refused,
    Waiting,
    on_accelerator,
)
from csm.web.waiting import Queue

SHORT_SECONDS = 5.0  # what encoding or decoding a clip takes in the queue
MORE_TAKES = 0.3  # what one more take of a turn costs, in takes: they are sampled in one batch
WIDE_SECONDS = 60  # of an accelerator, for a clip

LiveUpdate = Event | Waiting | Refused


@dataclass(frozen=True)
class Task:
    """Speak `session` from turn `index` (from 0) on or, `again`, redo that turn alone.

    A file at `halt_file` ends it at the next frame with what was made; one at `stop_file` says that nobody listens
    any more. Both are in `folder`, which is this task's own.
    """

    session: Session
    folder: Path
    index: int = 0
    again: bool = False

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"

    @property
    def halt_file(self) -> Path:
        return self.folder / "halt"

    def ended(self) -> bool:
        """Whether somebody asked to stop, or nobody listens any more."""
        return self.halt_file.exists() or self.stop_file.exists()

    @property
    def speech_seconds(self) -> float:
        """How much sound it should give, each take after the first counted at its cost."""
        settings = self.session.settings
        turns = self.session.turns[self.index : self.index + 1 if self.again else None]
        lengths = (min(1.0 + len(turn.text) / LETTERS_PER_SECOND, settings.max_turn_seconds) for turn in turns)
        return sum(lengths) * (1 + MORE_TAKES * (settings.takes - 1))


def lease_seconds(task: Task) -> int:
    """How long to ask for an accelerator."""
    return min(LONGEST_LEASE, math.ceil(START_SECONDS + task.speech_seconds))


class LazyJudges:
    """The judges of takes that are installed here, loaded when somebody first wants several takes."""

    def __init__(self, load: Callable[[], Judges] = installed_judges) -> None:
        self._load = load
        self._judges: Judges | None = None
        self._lock = threading.Lock()

    def get(self) -> Judges:
        with self._lock:
            if self._judges is None:
                self._judges = self._load()
            return self._judges


class Performer:
    """Speaks tasks with one model, each when its turn in `queue` comes; shared by all pages."""

    def __init__(self, generator: Generator, queue: Queue, judges: LazyJudges | None = None) -> None:
        self.generator = generator
        self.queue = queue
        self._judges = judges or LazyJudges()
        home = os.getpid()

        def speak(task: Task) -> Iterator[LiveUpdate | bytes]:
            away = os.getpid() != home  # plain bytes outlive the process that sent them, tensors may not
            try:
                for event in self._events(task):
                    yield pickle.dumps(event) if away else event
            except InputError as error:
                yield Refused(str(error))

        self._speak = on_accelerator(speak, lease_seconds)

    def perform(self, task: Task) -> Iterator[LiveUpdate]:
        """`Waiting` every now and then, then what `Session.speak` yields, or `Refused` last. Raises `QueueFull`."""
        with self.queue.join(task.speech_seconds) as place:
            while not place.wait(NEWS_SECONDS):
                if task.ended():
                    yield Refused(GIVEN_UP)
                    return
                yield Waiting(place.ahead, place.expected_wait)
            if task.session.settings.takes > 1:
                self._judges.get()
            try:
                with closing(self._speak(task)) as updates:
                    for update in updates:
                        event = pickle.loads(update) if isinstance(update, bytes) else update
                        if not isinstance(event, Refused):
                            task.session.apply(event)
                        yield event
            finally:
                task.session.settle()

    def on_device(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function that uses the model shortly, in turn with all else that does."""
        leased = on_accelerator(work, WIDE_SECONDS)

        def in_turn(*inputs: Any) -> Any:
            with self.queue.join(SHORT_SECONDS) as place:
                while not place.wait(NEWS_SECONDS):
                    pass
                return leased(*inputs)

        return in_turn

    def _events(self, task: Task) -> Iterator[Event]:
        session = task.session
        judges = self._judges.get() if session.settings.takes > 1 else NOBODY
        if task.again:
            steps = session.redo(self.generator, task.index, stop=task.ended, judges=judges)
        else:
            steps = session.speak(self.generator, task.index, stop=task.ended, judges=judges)
        with closing(steps):  # type: ignore[type-var]
            yield from steps
