"""What a running server gives many listeners who come by themselves: a fixed workload, the same for every server.

Listeners arrive as a Poisson process, whether or not those before them have been served: a server that is too slow is
not spared. Four of five ask for a sentence, one for a short dialogue.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from csm.bench.figures import percentile
from csm.bench.server import ANSWER_SECONDS, BYTES_A_SECOND, TEXT
from csm.errors import InputError

SENTENCES = (
    "Good morning, and welcome back.",
    "The rain has stopped, so we could walk along the river for an hour.",
    "I think I left my umbrella in the restaurant.",
    "Please turn left at the next corner, and then it is the second house.",
    TEXT,
)
DIALOGUE = ("A: Good morning! Did you sleep well?", "B: Yes, thank you. Is there any coffee left?", "A: Of course.")
DIALOGUES = 0.2  # of all requests
SOON = 1.0  # seconds to the first sound, within which a listener is served well
PERCENTILES = (50, 95, 99)
MOST_LISTENERS = 10_000


@dataclass(frozen=True)
class Arrival:
    """A listener: `at` seconds after the beginning, asking for `body` at `path`."""

    at: float
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What a listener got: `status` 200 and seconds of `sound`, until the `first` of it and until the `whole`; or why
    nothing."""

    status: str
    sound: float = 0.0
    first: float = math.inf
    whole: float = math.inf

    @property
    def well(self) -> bool:
        """Whether it began soon and was never waited for, as far as the end tells."""
        return self.status == "200" and self.first <= SOON and self.whole <= self.first + max(self.sound, SOON)


def arrivals(rate: float, seconds: float, seed: int = 7) -> list[Arrival]:
    """Who comes within `seconds`, `rate` a second on average; the same for the same numbers. Raises `InputError`."""
    if not 0 < rate <= 1_000 or not 0 < seconds <= 3_600 or rate * seconds > MOST_LISTENERS:
        raise InputError(f"At most {MOST_LISTENERS:,} listeners come, 1000 a second and for an hour: choose less.")
    chance, at, found = random.Random(seed), 0.0, list[Arrival]()
    while (at := at + chance.expovariate(rate)) < seconds:
        common = {"response_format": "pcm", "seed": len(found)}
        if chance.random() < DIALOGUES:
            body = {"input": "\n".join(DIALOGUE), "stream_format": "audio", **common}
            found.append(Arrival(at, "/v1/audio/dialogue", body))
        else:
            found.append(
                Arrival(at, "/v1/audio/speech", {"input": chance.choice(SENTENCES), "voice": "alloy", **common})
            )
    return found


def ask(url: str, arrival: Arrival, key: str | None) -> Served:
    """One listener at the server `url`."""
    at, start, first, count = urlsplit(url), time.perf_counter(), math.inf, 0
    kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
    connection = kind(at.hostname or "", at.port, timeout=ANSWER_SECONDS)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request("POST", at.path.rstrip("/") + arrival.path, json.dumps(arrival.body), headers)
        answer = connection.getresponse()
        while piece := answer.read1(1 << 16):
            first, count = min(first, time.perf_counter() - start), count + len(piece)
        if answer.status != 200:
            return Served(str(answer.status))
    except (OSError, http.client.HTTPException):
        return Served("broken off" if count else "no answer")
    finally:
        connection.close()
    return Served("200", count / BYTES_A_SECOND, first, time.perf_counter() - start)


def bench_load(url: str, rate: float, seconds: float, key: str | None = None) -> dict[str, Any]:
    """What all listeners got -> figures. `goodput` is requests a second that were served well, `sound_per_second` all
    sound from the first arrival to the last answer; seconds to the first sound and real-time factors at the
    percentiles. Raises `InputError` for numbers that are not possible, and where nobody heard anything."""
    if not _is_address(url):
        raise InputError(f"{url[:80]} is no address: write one such as http://127.0.0.1:7860.")
    coming, served, begun = arrivals(rate, seconds), list[Served](), time.perf_counter()

    def listen(one: Arrival) -> None:
        served.append(ask(url, one, key))

    threads = []
    for one in coming:
        time.sleep(max(0.0, one.at - (time.perf_counter() - begun)))
        threads.append(threading.Thread(target=listen, args=(one,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begun
    heard = [one for one in served if one.status == "200" and one.sound > 0]
    if not heard:
        told = ", ".join(f"{name} ({count})" for name, count in Counter(one.status for one in served).items())
        raise InputError(f"Nobody heard anything of {url}: {told or 'nobody came'}.")
    figures = {
        "requests": len(coming),
        "rate": rate,
        "seconds": round(spent, 2),
        "statuses": dict(Counter(one.status for one in served)),
        "goodput": round(sum(one.well for one in served) / spent, 3),
        "sound_per_second": round(sum(one.sound for one in served) / spent, 3),
        "first_seconds": _percentiles([one.first for one in heard]),
        "real_time_factor": _percentiles([one.whole / one.sound for one in heard]),
    }
    return {"load": figures}


def _is_address(url: str) -> bool:
    try:
        at = urlsplit(url)
        return at.scheme in ("http", "https") and bool(at.hostname) and at.port != 0
    except ValueError:  # a port that is none
        return False


def load_table(figures: dict[str, Any]) -> str:
    """The figures as lines of text."""
    found = figures["load"]
    lines = [
        f"{found['requests']} requests in {found['seconds']:.1f} s, {found['rate']:g} a second on average: "
        + ", ".join(f"{count} × {status}" for status, count in found["statuses"].items()),
        f"goodput {found['goodput']:.2f} a second; {found['sound_per_second']:.2f} s of sound a second",
    ]
    for name, shown, unit, scale in (
        ("first_seconds", "first sound", "ms", 1000),
        ("real_time_factor", "real-time factor", "", 1),
    ):
        cells = (f"p{at} {found[name][f'p{at}'] * scale:.{0 if unit else 2}f} {unit}".strip() for at in PERCENTILES)
        lines.append(f"{shown}: {', '.join(cells)}")
    return "\n".join(lines)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{at}": round(percentile(values, at), 4) for at in PERCENTILES}
