"""Whose turn it is with the model: one queue for the page and for programs, first come, first served.

The model speaks for as many at once as the queue has slots. Whoever wants it joins, waits for a slot, and leaves. Who
is told to come again, because too many wait, has a place from that time on, before all who come by themselves.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from csm.conversation.events import Waiting
from csm.errors import InputError

LONGEST_QUEUE = 16
MOST_TOLD = 4  # times as many as may wait have a place kept for when they come again: who never comes holds up others
MEMORY = 0.7  # how much of what is known about the pace stays when another job is done
NEWS_SECONDS = 0.25  # how often a job that waits says so
LOOK_SECONDS = 0.05  # how often it sees whether anybody still waits for it
AGAIN_SECONDS = 5.0  # when to come again to a server that ends
EARLY_SECONDS, LATE_SECONDS = 1.0, 15.0  # how far from the time that was told somebody may come


class QueueFull(InputError):
    """So many wait already that another would only be kept waiting; `seconds` is when to come again."""

    def __init__(self, seconds: float) -> None:
        told = f"Too many are waiting for the model; try again in {max(1, round(seconds))} seconds."
        super().__init__(told, "queue_full")
        self.seconds = seconds


class Closing(QueueFull):
    """The server is about to end: another will be there in a while."""

    def __init__(self) -> None:
        InputError.__init__(self, "This server is about to stop; try again in a few seconds.", "closing")
        self.seconds = AGAIN_SECONDS


class Place:
    """A place in the queue, for a job that should give `speech_seconds` of sound. Leaves when its block ends."""

    def __init__(self, queue: Queue, speech_seconds: float) -> None:
        self._queue = queue
        self.speech_seconds = speech_seconds
        self.first = threading.Event()
        self.began: float | None = None
        self.done = True  # False: it was broken off, and its pace says nothing

    @property
    def served(self) -> bool:
        """Whether it is this job's turn."""
        return self.first.is_set()

    def news(self, given_up: Callable[[], bool] = lambda: False) -> Iterator[Waiting]:
        """Wait until it is this job's turn, or until somebody has `given_up`, and tell how it stands now and then."""
        told = -math.inf
        while not self.first.is_set() and not given_up():
            if time.monotonic() - told >= NEWS_SECONDS:
                told = time.monotonic()
                yield Waiting(self.ahead, self.expected_wait)
            self.first.wait(LOOK_SECONDS)

    @property
    def ahead(self) -> int:
        """How many must be done before it is this job's turn."""
        return self._queue.before(self)[0]

    @property
    def expected_wait(self) -> float:
        """Seconds until it is this job's turn, as far as the pace of the last ones tells."""
        return self._queue.before(self)[1]

    def leave(self) -> None:
        self._queue.remove(self)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


@dataclass(eq=False)
class _Told:
    """Somebody who was sent away and told to come again at the time `due`."""

    who: str
    speech_seconds: float
    due: float
    began: float | None = None


class Queue:
    """The queue itself; one for each loaded model. `slots` are served at once; `longest` bounds those who wait and are
    served, where one is, and grows with every further slot."""

    def __init__(self, slots: int = 1, longest: int = LONGEST_QUEUE) -> None:
        self.slots, self.longest = slots, longest + slots - 1
        self.pace = 1.0  # seconds of work for a second of speech
        self._closing = False
        self._guard = threading.Lock()
        self._places: list[Place] = []  # those who are served, too: the first of them
        self._told: list[_Told] = []  # who was sent away and when to come again, in this order

    def join(self, speech_seconds: float, who: str = "") -> Place:
        """A place at the end. Raises `QueueFull`, where not even one who comes as told has room, and `Closing`.

        `who` names whoever asks, so that it is known again; without a name nothing is kept for it."""
        with self._guard:
            if self._closing:
                raise Closing
            now = time.monotonic()
            self._told = [one for one in self._told if now <= one.due + LATE_SECONDS]
            expected = next((one for one in self._told if one.who == who), None)
            # Who comes as told passes all who were told; who comes early, only those who were told later.
            early = expected is None or now < expected.due - EARLY_SECONDS
            before = len(self._told) if expected is None else self._told.index(expected)
            taken = len(self._places) + (before if early else 0)
            if taken >= self.longest:
                raise QueueFull(self._sent_away(now, speech_seconds, who, None if early else expected))
            if expected:
                self._told.remove(expected)
            place = Place(self, speech_seconds)
            self._places.append(place)
            self._serve()
        return place

    def remove(self, place: Place) -> None:
        """Let `place` go, served or not; going twice does no harm."""
        with self._guard:
            if place not in self._places:
                return
            self._places.remove(place)
            if place.began is not None and place.speech_seconds > 0 and place.done:
                pace = (time.monotonic() - place.began) / place.speech_seconds
                self.pace = MEMORY * self.pace + (1 - MEMORY) * pace
            self._serve()

    def before(self, place: Place) -> tuple[int, float]:
        """How many must be done before it is the turn of `place`, and in how many seconds that should be."""
        with self._guard:
            if place not in self._places:
                return 0, 0.0
            return self._standing(self._places[: self._places.index(place)])

    def counts(self) -> tuple[int, int]:
        """How many are served now, and how many wait."""
        with self._guard:
            served = min(len(self._places), self.slots)
            return served, len(self._places) - served

    @property
    def closing(self) -> bool:
        """Whether nobody gets a place any more."""
        return self._closing

    def close(self, seconds: float = 0.0) -> bool:
        """Give no more places, and wait until the last job has ended, `seconds` at most -> whether all have."""
        with self._guard:
            self._closing = True
        give_up = time.monotonic() + seconds
        while sum(self.counts()) and time.monotonic() < give_up:
            time.sleep(LOOK_SECONDS)
        return not sum(self.counts())

    def waiting(self) -> tuple[int, float]:
        """How many must be done before it would be the turn of somebody who joins now, and in how many seconds."""
        with self._guard:
            return self._standing(self._places)

    def _sent_away(self, now: float, speech_seconds: float, who: str, known: _Told | None) -> float:
        """Seconds after which there is room, and keep it for `who`."""
        seconds = self._wait([*self._places, *(one for one in self._told if one is not known)])
        if known is not None:
            known.due = now + seconds
        elif who and len(self._told) < MOST_TOLD * self.longest:
            self._told.append(_Told(who, speech_seconds, now + seconds))
        return seconds

    def _serve(self) -> None:
        for place in self._places[: self.slots]:
            if place.began is None:
                place.began = time.monotonic()
                place.first.set()

    def _standing(self, ahead: Sequence[Place]) -> tuple[int, float]:
        return max(0, len(ahead) - self.slots + 1), self._wait(ahead)

    def _wait(self, ahead: Sequence[Place | _Told]) -> float:
        """Seconds until a slot is free for whoever stands behind these: each takes the slot that is free first."""
        now, free = time.monotonic(), [0.0] * self.slots
        for place in ahead:
            spent = 0.0 if place.began is None else now - place.began
            heapq.heappush(free, heapq.heappop(free) + max(0.0, place.speech_seconds * self.pace - spent))
        return free[0]
