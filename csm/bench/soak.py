"""What a server is like when a crowd has been on it for long: is what each hears theirs, and does its memory stay.

Pages, programs and talkers on a real server, each asking for one of a few texts and leaving in the middle now and then;
who is sent away comes again as told. What comes back is compared with what came when nobody else was there.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csm.bench.crowd import BROKEN, TEXTS, Away, Heard, LanguageModel, page, program, talker
from csm.bench.figures import percentile
from csm.bench.server import Running, serving
from csm.errors import InputError

PAGES, PROGRAMS, TALKERS = 8, 32, 4
CROWD = f"{PAGES} pages, {PROGRAMS} programs, {TALKERS} talkers"
MOST_MINUTES = 24 * 60
LEAVING = 0.25  # of the requests are left before their end
CLOSE = 0.05  # of its size, what a sound may be off by from the same spoken alone: a batch rounds otherwise
LOOK_SECONDS = 1.0
SETTLE_SECONDS = 30.0

Ask = Callable[..., Heard]


@dataclass
class Told:
    """What the crowd saw, for any thread."""

    seen: Counter[str] = field(default_factory=Counter)
    firsts: list[float] = field(default_factory=list)  # seconds to the first sound
    wrong: list[str] = field(default_factory=list)
    again: int = 0  # came as they were told to ...
    got_in: int = 0  # ... and of them were let in
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, first: float | None = None) -> None:
        with self._guard:
            self.seen[what] += 1
            if first is not None:
                self.firsts.append(first)

    def came_again(self, in_now: bool) -> None:
        with self._guard:
            self.again, self.got_in = self.again + 1, self.got_in + in_now

    def found(self, what: str) -> None:
        with self._guard:
            self.seen["wrong"] += 1
            self.wrong.append(what)


@dataclass(frozen=True)
class Usage:
    """Of the server's process: MB of memory, threads, descriptors."""

    memory: float
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        told = {line.partition(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
        open_ones = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(int(told["VmRSS"]) / 1024, int(told["Threads"]), open_ones)


def soak(model: str | None, device: str, minutes: float, report: Callable[[str], None]) -> dict[str, Any]:
    """The figures of a crowd that is there for so many minutes. Raises `InputError`."""
    if not Path("/proc/self/status").exists():
        raise InputError("What a process has in use is read from /proc, which only Linux has.")
    with LanguageModel() as words, serving(model, device, **words.environment()) as running:
        report("Each text is spoken alone.")
        alone = {(ask.__name__, text): _alone(ask, running.port, text) for ask in KINDS for text in range(len(TEXTS))}
        told, over = Told(), threading.Event()
        crowd = list(_crowd(running.port, alone, told, over))
        before = Usage.of(running.pid)
        for thread in crowd:
            thread.start()
        seen = _watched(running, minutes, told, report)
        over.set()
        for thread in crowd:
            thread.join()
        after = _settled(running, before)
    return {"soak": {"model": model, "device": device, "minutes": minutes, **_figures(told, before, seen, after)}}


KINDS: dict[Ask, int] = {page: PAGES, program: PROGRAMS, talker: TALKERS}


def _alone(ask: Ask, port: int, text: int) -> Heard:
    heard = ask(port, text, "alone")
    if heard.first is None:
        raise InputError(f"The server gave no sound to a {ask.__name__} that was alone.")
    return heard


def _crowd(
    port: int, alone: dict[tuple[str, int], Heard], told: Told, over: threading.Event
) -> Iterator[threading.Thread]:
    for ask, count in KINDS.items():
        for number in range(count):
            given = (ask, port, f"{ask.__name__} {number}", alone, told, over)
            yield threading.Thread(target=_client, args=given, daemon=True)


def _client(
    ask: Ask, port: int, who: str, alone: dict[tuple[str, int], Heard], told: Told, over: threading.Event
) -> None:
    chance, kind, again = random.Random(who), ask.__name__, False
    while not over.wait(chance.uniform(0, 2)):
        text = chance.randrange(len(TEXTS))
        leaves = chance.uniform(0.1, 4.0) if chance.random() < LEAVING else None
        try:
            heard = ask(port, text, who, leaves)
        except Away as away:
            told.count(f"{kind} sent away")
            if again:
                told.came_again(False)
            again = away.as_told and not over.wait(away.seconds + chance.random())
            continue
        except BROKEN as error:
            told.found(f"{who}: {type(error).__name__}: {error}"[:300])
            continue
        if again:
            told.came_again(True)
            again = False
        told.count(f"{kind} left" if heard.left else f"{kind} heard", heard.first)
        if (mixed := differs(heard, alone[kind, text])) is not None:
            told.found(f"{who} heard something else than text {text}: {mixed}")


def differs(heard: Heard, alone: Heard) -> str | None:
    """What is not as it was when nobody else was there; of one who left, as far as they heard it."""
    if heard.words is not None and not (alone.words or "").startswith(heard.words):
        return f"the words “{heard.words[:60]}”"
    if heard.sound is None or alone.sound is None:
        return None if heard.left or heard.words == alone.words else "fewer words"
    count = len(heard.sound)
    if count > len(alone.sound) or (not heard.left and count != len(alone.sound)):
        return f"{count} samples for {len(alone.sound)}"
    expected = alone.sound[:count].astype(np.float64)
    size = float(np.linalg.norm(expected))
    off = float(np.linalg.norm(heard.sound.astype(np.float64) - expected))
    return f"off by {off / max(size, 1.0):.2f} of its size" if off > CLOSE * max(size, 1_000.0) else None


def _watched(running: Running, minutes: float, told: Told, report: Callable[[str], None]) -> list[Usage]:
    seen, start, said = [], time.monotonic(), 0
    while (spent := time.monotonic() - start) < 60 * minutes:
        time.sleep(LOOK_SECONDS)
        seen.append(Usage.of(running.pid))
        if spent >= 60 * (said + 1):
            said += 1
            now = seen[-1]
            report(f"Minute {said}: {now.memory:.0f} MB, {now.threads} threads, {sum(told.seen.values())} requests.")
    return seen or [Usage.of(running.pid)]


def _settled(running: Running, before: Usage) -> Usage:
    """What is in use when nobody is there any more."""
    end = time.monotonic() + SETTLE_SECONDS
    while (now := Usage.of(running.pid)).descriptors > before.descriptors and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return now


def _figures(told: Told, before: Usage, seen: list[Usage], after: Usage) -> dict[str, Any]:
    quarter = max(1, len(seen) // 4)
    firsts = told.firsts or [0.0]
    memory = [usage.memory for usage in seen]
    return {
        "requests": dict(sorted(told.seen.items())),
        "first_seconds_median": round(statistics.median(firsts), 3),
        "first_seconds_p95": round(percentile(firsts, 95), 3),
        "came_again": told.again,
        "got_in": told.got_in,
        "memory": {
            "before": round(before.memory),
            "second_quarter": round(statistics.mean(memory[quarter : 2 * quarter] or memory)),
            "last_quarter": round(statistics.mean(memory[-quarter:])),
            "most": round(max(memory)),
            "after": round(after.memory),
        },
        "threads": [before.threads, max(usage.threads for usage in seen), after.threads],
        "descriptors": [before.descriptors, max(usage.descriptors for usage in seen), after.descriptors],
        "wrong": told.wrong[:20],
    }


def soak_table(figures: dict[str, Any]) -> str:
    """The figures as lines of text."""
    one = figures["soak"]
    memory, again = one["memory"], one["came_again"]
    lines = [f"{name:<22}{count:>8}" for name, count in one["requests"].items()]
    lines.append(
        f"first sound            {one['first_seconds_median']:.2f} s, 95 % within {one['first_seconds_p95']:.2f} s"
    )
    lines.append(f"came again as told     {again}, and {one['got_in']} of them got in")
    lines.append(
        f"memory in MB           {memory['before']} before, {memory['second_quarter']} in the second quarter, "
        f"{memory['last_quarter']} in the last, {memory['most']} at most, {memory['after']} after"
    )
    for name in ("threads", "descriptors"):
        lines.append("{:<23}{} before, {} at most, {} after".format(name, *one[name]))
    return "\n".join([*lines, *(f"wrong: {told}" for told in one["wrong"])])
