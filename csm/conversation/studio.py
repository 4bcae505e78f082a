"""Jobs for one loaded model: a script performed, a text read aloud, one turn redone. They wait in one queue, enter the
accelerator at one place, and tell what happens in one stream of events.

The last stop before whoever shows it: the page, `/generate`, `/v1` and the command line all render these events.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

from csm.config import SAMPLE_RATE
from csm.conversation.events import Event, Performed, TurnFinished
from csm.conversation.judges import LazyJudges
from csm.conversation.parsing import Line
from csm.conversation.session import Session
from csm.conversation.takes import NOBODY
from csm.conversation.waiting import Queue
from csm.errors import InputError
from csm.settings import Settings
from csm.speech.generator import Generator
from csm.speech.voices import Voice
from csm.utterance import LONGEST

LETTERS_PER_SECOND = 12.0
MORE_TAKES = 0.3  # what one more take of a turn costs, in takes: they are sampled in one batch
START_SECONDS = 15.0
LONGEST_LEASE = 300
SHORT_SECONDS = 5.0  # what encoding or decoding a clip takes in the queue ...
SHORT_LEASE = 60  # ... and of an accelerator at most
GIVEN_UP = "This was stopped before its turn came; nothing was spoken."
LEFT = "This was stopped, because nobody waited for it any more."
TOO_MUCH = "This came to more than {:.0f} minutes of speech, and no more are made at once: what was made is kept."

Work = Callable[..., Iterator[Any]]
Accelerator = Callable[[Work, Callable[..., int]], Work]  # work, and how many seconds to lease for its inputs
Watch = Callable[["Job", Iterator[Event]], Iterator[Event]]  # sees a job's events on their way


def here(work: Work, seconds: Callable[..., int]) -> Work:
    """Where the accelerator, if there is one, is this process's own."""
    return work


def at_once(work: Callable[..., Any]) -> Callable[..., Any]:
    """What `Studio.on_device` makes of `work`, without a queue and an accelerator."""

    def done(*inputs: Any, given_up: Callable[[], bool] = lambda: False) -> Any:
        result = None
        for step in _steps(work, *inputs):
            result = step
            if given_up():
                raise InputError(LEFT, "given_up")
        return result

    return done


def _steps(work: Callable[..., Any], *inputs: Any) -> Iterator[Any]:
    if isgeneratorfunction(work):
        yield from work(*inputs)
    else:
        yield work(*inputs)


def expected_seconds(texts: Iterable[str], settings: Settings) -> float:
    """How much sound these turns should give, each take after the first counted at its cost."""
    seconds = sum(
        min(1.0 + len(text) / LETTERS_PER_SECOND, settings.max_turn_seconds * math.ceil(max(1, len(text)) / LONGEST))
        for text in texts
    )
    return seconds * (1 + MORE_TAKES * (settings.takes - 1))


@dataclass(frozen=True)
class Job:
    """Speak `session` from turn `index` (from 0) on or, `again`, redo that turn alone; `live`, sound is told of while
    it is made or, `held`, as soon as a piece of it is done and nothing more is to be mended.

    Single takes are listened to where it is `judged`: where somebody can be told what may have gone wrong.
    A job that others may stop has a `folder` of its own: a file in it is seen from other processes, too. `who` asked
    for it, by a name under which the queue knows them again. `most_seconds` of sound is all that it may come to.
    """

    session: Session
    folder: Path | None = None
    index: int = 0
    again: bool = False
    live: bool = True
    held: bool = False
    judged: bool = True
    who: str = ""
    most_seconds: float = math.inf

    def stop(self) -> None:
        """End at the next frame, with what was made."""
        if self.folder is not None and self.folder.exists():
            (self.folder / "stop").touch()

    def stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self.folder is not None and (self.folder / "stop").exists()

    @property
    def speech_seconds(self) -> float:
        """How much sound it should give, each take after the first counted at its cost."""
        turns = self.session.turns[self.index : self.index + 1 if self.again else None]
        return expected_seconds((turn.text for turn in turns), self.session.settings)

    @property
    def lease_seconds(self) -> int:
        """How long to ask for an accelerator: the sound that the text should give, at real time, and a start."""
        return min(LONGEST_LEASE, math.ceil(START_SECONDS + self.speech_seconds))


class Studio:
    """Speaks jobs with one model, as many at once as it has slots, each in the thread of whoever follows it.

    Several `slots` need a `generator` that speaks for several threads. `accelerator` says how work gets to where the
    weights are. `watch` may be set to what sees the events of every job. For any number of threads.
    """

    def __init__(
        self,
        generator: Generator,
        slots: int = 1,
        judges: LazyJudges | None = None,
        accelerator: Accelerator = here,
        queue: Queue | None = None,
    ) -> None:
        self.generator = generator
        self.queue = queue or Queue(slots)
        self.judges = judges or LazyJudges()
        self.watch: Watch = lambda job, events: events
        self.warming: threading.Thread | None = None
        self._works: list[Work] = [self._spoken]
        self._enter = accelerator(self._work, lambda seconds, *_: seconds)

    def perform(self, job: Job) -> Iterator[Event]:
        """`Waiting` every now and then, then what `Session.speak` yields; the job's session follows.

        Raises `QueueFull` at the first step when too many wait already, and `InputError` for what can't be spoken.
        """
        return self.watch(job, self._performed(job))

    def _performed(self, job: Job) -> Iterator[Event]:
        last, made, most = None, 0, job.most_seconds * SAMPLE_RATE
        with self.queue.join(job.speech_seconds, job.who) as place:
            yield from place.news(job.stopped)
            if not place.served:
                raise InputError(GIVEN_UP, "given_up")
            place.done = False
            if job.session.settings.takes > 1:
                self.judges.get()  # here, so that a process that is forked to speak finds them loaded
            try:
                with closing(self._enter(job.lease_seconds, 0, job)) as events:  # type: ignore[type-var]
                    for event in events:
                        job.session.apply(event)
                        if isinstance(event, Performed):
                            last, place.done = event, not job.stopped()
                            break
                        yield event
                        made += len(event.audio) if isinstance(event, TurnFinished) else 0
                        if made > most:
                            raise InputError(TOO_MUCH.format(job.most_seconds / 60), "too_long")
            finally:
                job.session.settle()
        if last:  # the next may speak while this one is shown
            yield last

    def on_device(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function that uses the model shortly, in turn with all else that does. Its inputs and its result can be
        pickled; make it before the first of them is called.

        `work` that yields has as its result what it yields last; between two of them it can be `given_up`, by a
        function of that name that may come with the inputs. Then, and before its turn, that is an `InputError`."""

        self._works.append(lambda *inputs: _steps(work, *inputs))
        number = len(self._works) - 1

        def in_turn(*inputs: Any, given_up: Callable[[], bool] = lambda: False, who: str = "") -> Any:
            result = None
            with self.queue.join(SHORT_SECONDS, who) as place:
                for _ in place.news(given_up):
                    pass
                if not place.served:
                    raise InputError(GIVEN_UP, "given_up")
                place.done = False
                with closing(self._enter(SHORT_LEASE, number, *inputs)) as results:  # type: ignore[type-var]
                    for step in results:
                        result = step
                        if given_up():
                            raise InputError(LEFT, "given_up")
                place.done = True
            return result

        return in_turn

    def warm_up(self, voices: dict[str, Voice]) -> threading.Thread:
        """In a thread of its own, do what the first listener would otherwise wait for: compile, record, and encode
        these voices by having them say a word to nobody."""

        def work() -> None:
            try:
                self.generator.engine.warm_up()
                lines = [Line(name, "Hello.", number) for number, name in enumerate(voices, 1)]
                for _ in Session(lines, voices, Settings(max_turn_seconds=1)).speak(self.generator):
                    pass
                self.judges.listen()
            except Exception as error:  # whoever clicks will be told, if it still is so
                warnings.warn(f"The model could not be warmed up: {error}", stacklevel=1)

        self.warming = threading.Thread(target=work, name="warm-up", daemon=True)
        self.warming.start()
        return self.warming

    def unready(self) -> str:
        """Why no jobs should be sent here at the moment, in one sentence; empty where they should."""
        if self.queue.closing:
            return "The server is about to stop."
        return "The model is being made ready." if self.warming is not None and self.warming.is_alive() else ""

    def _work(self, seconds: int, number: int, *inputs: Any) -> Iterator[Any]:
        return self._works[number](*inputs)

    def _spoken(self, job: Job) -> Iterator[Event]:
        session = job.session
        judges = self.judges.listening if job.judged else NOBODY
        if session.settings.takes > 1:
            judges = self.judges.get()
        spoken = session.redo if job.again else session.speak
        return spoken(self.generator, job.index, stop=job.stopped, judges=judges, live=job.live, held=job.held)
