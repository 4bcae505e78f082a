"""Who is there: what replicas say of themselves, and which of them a request goes to. Plain data, no network."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

READY, STARTING, LEAVING, FAILED = "ready", "starting", "leaving", "failed"
SILENT_SECONDS = 10.0  # without a word, after which a replica is taken for dead; who asks a dead one notices at once
TOLD_SECONDS = 600.0  # for which it is said why one failed
OTHERWISE = "It runs {}, and the others run {}: give all of them the same program and weights."
SPEAKING = (
    *("/v1/audio/speech", "/v1/audio/dialogue", "/v1/audio/voices", "/v1/realtime"),
    *("/csm/speak", "/csm/open", "/csm/talk", "/gradio_api/call/", "/gradio_api/queue/join", "/gradio_api/mcp"),
)


@dataclass(frozen=True)
class Standing:
    """What a replica says of itself. `beat` grows with every time; `speaks` names program, model and weights, which all
    replicas of one `generation` (seconds since 1970) have in common; `trouble` is one sentence."""

    id: str
    url: str = ""
    state: str = STARTING
    trouble: str = ""
    model: str = ""
    device: str = ""
    speaks: str = ""
    slots: int = 0
    speaking: int = 0
    waiting: int = 0
    beat: int = 0
    generation: float = 0.0

    def told(self) -> dict[str, Any]:
        """For whoever looks how it does."""
        shown = ("id", "state", "trouble", "model", "device", "speaks", "slots", "speaking", "waiting")
        return {name: getattr(self, name) for name in shown}


class Roster:
    """All replicas by what they said last. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[float, Standing]] = {}

    def tell(self, standing: Standing) -> None:
        """Note what a replica says."""
        self._heard[standing.id] = (self._clock(), standing)

    def standings(self) -> list[Standing]:
        """Those who are there and those who failed of late, once for every trouble, however often that was tried again;
        one that speaks otherwise than the rest of its generation has failed, too."""
        now = self._clock()
        told = {one.trouble: at for at, one in sorted(self._heard.values(), key=lambda heard: heard[0])}
        self._heard = {
            id: (at, one)
            for id, (at, one) in self._heard.items()
            if now - at <= SILENT_SECONDS
            or (one.state == FAILED and now - at <= TOLD_SECONDS and at == told[one.trouble])
        }
        all_of_them = [one for _, one in self._heard.values()]
        usual = _usual(all_of_them)
        return [_judged(one, usual.get(one.generation, "")) for one in all_of_them]


def _usual(standings: Iterable[Standing]) -> dict[float, str]:
    """What most ready replicas of a generation speak; of as many, the one that was there first."""
    counts: dict[float, Counter[str]] = {}
    for one in standings:
        if one.state == READY:
            counts.setdefault(one.generation, Counter())[one.speaks] += 1
    return {generation: count.most_common(1)[0][0] for generation, count in counts.items()}


def _judged(one: Standing, usual: str) -> Standing:
    if one.state != READY or one.speaks == usual:
        return one
    return replace(one, state=FAILED, trouble=OTHERWISE.format(one.speaks, usual))


@dataclass
class Asked:
    """What of a request says where it goes: its path, the replica that its cookie names, and `who` asks."""

    path: str
    cookie: str = ""
    who: str = ""

    @property
    def stays(self) -> bool:
        """Whether what it asks for is kept by one replica: pages, Gradio's sessions, uploads. `/v1` keeps nothing."""
        return not self.path.startswith("/v1/")

    @property
    def speaks(self) -> bool:
        """Whether it may take a slot."""
        return self.path.startswith(SPEAKING)


class Balance:
    """Chooses. One for each front; it counts what it has sent itself, because what replicas say is a moment old."""

    def __init__(self) -> None:
        self._there: dict[str, Standing] = {}
        self._sent: Counter[str] = Counter()
        self._down: dict[str, int] = {}  # those that broke off, and their last beat by then
        self._given: dict[str, int] = {}
        self._count = 0

    def learn(self, standings: Iterable[Standing]) -> None:
        """Take over what the register knows."""
        self._there = {one.id: one for one in standings}
        self._down = {id: beat for id, beat in self._down.items() if id in self._there}

    def standings(self) -> list[Standing]:
        """All that are known, those that broke off among them."""
        return list(self._there.values())

    def ready(self) -> list[Standing]:
        """Those that take requests."""
        return [one for one in self._there.values() if one.state == READY and one.beat > self._down.get(one.id, -1)]

    def broke(self, id: str) -> None:
        """A replica did not answer: it gets nothing more until it has said something new."""
        if (one := self._there.get(id)) is not None:
            self._down[id] = one.beat

    def choose(self, asked: Asked, but: Collection[str] = ()) -> Standing | None:
        """The replica for a request, not one of `but`; None where there is none.

        The one that the cookie names, while it takes requests or leaves; without a cookie, for what is kept, always the
        same one for the same asker; else the one with the fewest jobs for its slots."""
        ready = [one for one in self.ready() if one.id not in but]
        if asked.stays and asked.cookie and asked.cookie not in but:
            if (own := self._there.get(asked.cookie)) in ready or (own is not None and own.state == LEAVING):
                return own
        sound = [one for one in ready if not one.trouble] or ready
        if not sound:
            return None
        if asked.stays and asked.path != "/":
            return max(sound, key=lambda one: hashlib.sha256(f"{one.id} {asked.who}".encode()).digest())
        chosen = min(sound, key=lambda one: (self._load(one), self._given.get(one.id, 0)))
        self._count += 1
        self._given[chosen.id] = self._count
        return chosen

    @contextmanager
    def sent(self, id: str, asked: Asked) -> Any:
        """While the block lasts, the request counts as one of that replica's."""
        if asked.speaks:
            self._sent[id] += 1
        try:
            yield
        finally:
            if asked.speaks:
                self._sent[id] -= 1

    def _load(self, one: Standing) -> float:
        return max(self._sent[one.id], one.speaking + one.waiting) / max(1, one.slots)


@dataclass(frozen=True)
class Figures:
    """One figure for all: jobs spoken and waiting, and the slots of those who take requests."""

    slots: int
    speaking: int
    waiting: int

    @classmethod
    def of(cls, standings: Iterable[Standing]) -> Figures:
        there = [one for one in standings if one.state in (READY, LEAVING)]
        return cls(
            sum(one.slots for one in there if one.state == READY),
            sum(one.speaking for one in there),
            sum(one.waiting for one in there),
        )
