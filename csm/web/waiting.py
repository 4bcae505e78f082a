"""Whose turn it is with the model: one queue for the page and for programs, first come, first served.

The model speaks for as many at a time as there are `slots`. Whoever wants it joins the queue, waits to be among the
first, and leaves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType

LONGEST_QUEUE = 16
MEMORY = 0.7  # how much of what is known about the pace stays when another job is done


class QueueFull(Exception):
    """So many wait already that another would only be kept waiting; `seconds` is when to come again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Too many are waiting for the model; try again in {max(1, round(seconds))} seconds.")
        self.seconds = seconds


class Place:
    """A place in the queue, for a job that should give `speech_seconds` of sound. Leaves when its block ends."""

    def __init__(self, queue: Queue, speech_seconds: float) -> None:
        self._queue = queue
        self.speech_seconds = speech_seconds
        self.first = threading.Event()
        self.began: float | None = None

    def wait(self, seconds: float) -> bool:
        """Whether it is this job's turn, after waiting for it for at most `seconds`."""
        return self.first.wait(seconds)

    @property
    def ahead(self) -> int:
        """How many come before."""
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


class Queue:
    """The queue itself; one for each loaded model. `longest` bounds those who wait and the `slots` who are served."""

    def __init__(self, longest: int = LONGEST_QUEUE, slots: int = 1) -> None:
        self.longest, self.slots = longest, slots
        self.pace = 1.0  # seconds of work for a second of speech
        self._guard = threading.Lock()
        self._places: deque[Place] = deque()

    def join(self, speech_seconds: float) -> Place:
        """A place at the end. Raises `QueueFull`."""
        with self._guard:
            if len(self._places) >= self.longest:
                raise QueueFull(self._expected(list(self._places)))
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
            if place.began is not None and place.speech_seconds > 0:
                pace = (time.monotonic() - place.began) / place.speech_seconds
                self.pace = MEMORY * self.pace + (1 - MEMORY) * pace
            self._serve()

    def before(self, place: Place) -> tuple[int, float]:
        """How many come before `place`, and the seconds that they should take."""
        with self._guard:
            if place not in self._places:
                return 0, 0.0
            ahead = list(self._places)[: self._places.index(place)]
            return max(0, len(ahead) - self.slots + 1), self._expected(ahead)

    def waiting(self) -> tuple[int, float]:
        """How many would come before somebody who joins now, and the seconds that they should take."""
        with self._guard:
            return max(0, len(self._places) - self.slots + 1), self._expected(list(self._places))

    def _serve(self) -> None:
        for place in list(self._places)[: self.slots]:
            if place.began is None:
                place.began = time.monotonic()
                place.first.set()

    def _expected(self, places: list[Place]) -> float:
        def left(place: Place) -> float:
            spent = 0.0 if place.began is None else time.monotonic() - place.began
            return max(0.0, place.speech_seconds * self.pace - spent)

        return sum(map(left, places)) / self.slots if len(places) >= self.slots else 0.0
