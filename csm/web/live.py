"""A session that is spoken for a page: it waits its turn with the model, then tells what happens while it speaks.

On ZeroGPU the session is sent to another process and what happens there is brought into this one's copy; anywhere
else it is the same object and keeps its KV cache from one call to the next.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csm.conversation import parse_script
from csm.errors import InputError
from csm.events import Event, Performed, TurnStarted
from csm.generator import Generator
from csm.judges import LazyJudges
from csm.session import Session
from csm.takes import NOBODY, Judges
from csm.web.examples import EXAMPLES
from csm.web.gpu import (
    GIVEN_UP,
    LONGEST_LEASE,
    NEWS_SECONDS,
    START_SECONDS,
    Refused,
    Stoppable,
    Waiting,
    expected_seconds,
    on_accelerator,
)
from csm.web.waiting import Queue

SHORT_SECONDS = 5.0  # what encoding or decoding a clip takes in the queue
MOST_EXAMPLES = 16  # runs of examples that are kept
SAID = {tuple((line.speaker, line.text) for line in parse_script(script)) for script in EXAMPLES.values()}
WIDE_SECONDS = 60  # of an accelerator, for a clip


@dataclass(frozen=True)
class Comparing:
    """Several takes of turn `index` (from 0) are made at once: `frames` of each so far, `heard` of them listened to."""

    index: int
    frames: int = 0
    heard: int = 0


@dataclass(frozen=True)
class Kept:
    """What follows happened before: another page had the same example spoken."""


LiveUpdate = Event | Waiting | Refused | Comparing | Kept


@dataclass(frozen=True)
class Task(Stoppable):
    """Speak `session` from turn `index` (from 0) on or, `again`, redo that turn alone.

    A file at `halt_file` ends it at the next frame with what was made; one at `stop_file` says that nobody listens
    any more. Both are in `folder`, which is this task's own.
    """

    session: Session
    folder: Path
    index: int = 0
    again: bool = False

    @property
    def halt_file(self) -> Path:
        return self.folder / "halt"

    @property
    def progress_file(self) -> Path:
        return self.folder / "progress"

    def progress(self) -> Comparing | None:
        """How far the takes of the turn at hand are; None where one take after the other tells of itself."""
        try:
            return Comparing(*json.loads(self.progress_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def ended(self) -> bool:
        """Whether somebody asked to stop, or nobody listens any more."""
        return self.halt_file.exists() or self.stop_file.exists()

    @property
    def speech_seconds(self) -> float:
        """How much sound it should give, each take after the first counted at its cost."""
        turns = self.session.turns[self.index : self.index + 1 if self.again else None]
        return expected_seconds((turn.text for turn in turns), self.session.settings)


def lease_seconds(task: Task) -> int:
    """How long to ask for an accelerator."""
    return min(LONGEST_LEASE, math.ceil(START_SECONDS + task.speech_seconds))


class Tally:
    """Writes down how far the takes of a turn are, where the serving process can read it while they are made."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._now = Comparing(task.index)
        self._told = 0.0

    def begin(self, index: int) -> None:
        """Turn `index` begins."""
        self._now = Comparing(index)
        self._tell()

    def frame(self) -> bool:
        """Asked before every frame, whether to end there."""
        self._now = replace(self._now, frames=self._now.frames + 1)
        if time.monotonic() - self._told > NEWS_SECONDS:
            self._tell()
        return self._task.ended()

    def counted(self, judges: Judges) -> Judges:
        """`judges`, with each take counted that they listen to."""

        def counting(listen: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            def heard(audio: Any, other: Any) -> Any:
                self._now = replace(self._now, heard=self._now.heard + 1)
                self._tell()
                return listen(audio, other)

            return heard

        if judges.word_errors:
            return replace(judges, word_errors=counting(judges.word_errors))
        return replace(judges, likeness=counting(judges.likeness)) if judges.likeness else judges

    def _tell(self) -> None:
        now, beside = self._now, self._task.folder / "progress.new"
        beside.write_text(json.dumps([now.index, now.frames, now.heard]), encoding="utf-8")
        os.replace(beside, self._task.progress_file)
        self._told = time.monotonic()


class Performer:
    """Speaks tasks with one model, each when its turn in `queue` comes; shared by all pages."""

    def __init__(self, generator: Generator, queue: Queue, judges: LazyJudges | None = None) -> None:
        self.generator = generator
        self.queue = queue
        self.judges = judges or LazyJudges()
        self._kept: dict[str, list[bytes]] = {}
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
        """`Waiting` every now and then, then what `Session.speak` yields, or `Refused` last. Raises `QueueFull`.

        An example that was spoken before is not spoken again: `Kept`, and then what happened."""
        example = self._example(task)
        if example in self._kept:
            yield from self._once_more(task, self._kept[example])
            return
        happened: list[bytes] = []
        with closing(self._performed(task)) as updates:  # type: ignore[type-var]
            for update in updates:
                if example and not isinstance(update, Waiting):
                    happened.append(pickle.dumps(update))
                yield update
        whole = all(turn.take and turn.take.state != "stopped" for turn in task.session.turns)
        if example and whole and len(self._kept) < MOST_EXAMPLES:
            self._kept[example] = happened

    def _example(self, task: Task) -> str:
        """What is asked, by name, where it is one of the page's examples in the voices that are offered to all."""
        session, offered = task.session, self.generator.voices().values()
        if task.index or task.again or any(turn.takes for turn in session.turns):
            return ""
        if not all(voice in offered for voice in session.voices.values()):
            return ""
        said = tuple((turn.speaker, turn.text) for turn in session.turns)
        return repr((said, session.voices, session.settings)) if said in SAID else ""

    def _once_more(self, task: Task, happened: list[bytes]) -> Iterator[LiveUpdate]:
        yield Kept()
        spent = task.session.spent
        for data in happened:
            event = pickle.loads(data)
            task.session.apply(event)
            task.session.spent = spent  # nothing, this time
            yield event

    def _performed(self, task: Task) -> Iterator[LiveUpdate]:
        with self.queue.join(task.speech_seconds) as place:
            while not place.wait(NEWS_SECONDS):
                if task.ended():
                    yield Refused(GIVEN_UP)
                    return
                yield Waiting(place.ahead, place.expected_wait)
            if task.session.settings.takes > 1:
                self.judges.get()
            try:
                with closing(self._speak(task)) as updates:
                    for update in updates:
                        event = pickle.loads(update) if isinstance(update, bytes) else update
                        if not isinstance(event, Refused):
                            task.session.apply(event)
                        if isinstance(event, Performed):
                            task.session.settle()  # a turn that did not fit is not being spoken any more
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
        tally = Tally(task) if session.settings.takes > 1 else None
        judges = tally.counted(self.judges.get()) if tally else NOBODY
        stop = tally.frame if tally else task.ended
        spoken = session.redo if task.again else session.speak
        with closing(spoken(self.generator, task.index, stop=stop, judges=judges)) as events:  # type: ignore[type-var]
            for event in events:
                if tally and isinstance(event, TurnStarted):
                    tally.begin(event.index)
                yield event
