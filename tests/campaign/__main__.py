"""Run the campaign: so many cases, the same for the same seed; prints what is wrong, and what the server used."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.campaign.doors import doors, look_around, warm_up
from tests.campaign.judge import PATIENCE, Fault, Request, judged, sent
from tests.campaign.server import Server, forget_peak, held, leftovers, served, usage

MORE_THREADS, MORE_DESCRIPTORS = 12, 12  # than before: pools that grow once
LOGGED = re.compile("failed\\.\nTraceback|Exception in thread|was never retrieved|never awaited|Exception in ASGI")
SETTLE_SECONDS = 30.0
HOLD = 0.25  # seconds for which nothing should keep all other threads from running
CHANGING = re.compile(r"[0-9a-f]{6,}|\d+")  # what differs between two faults of one kind


@dataclass(frozen=True)
class Campaign:
    """How many cases at which doors, in which order of chance; an answer may take `patience` seconds."""

    cases: int
    seed: int = 1
    patience: float = PATIENCE
    only: tuple[str, ...] = ()


def campaign(server: Server, asked: Campaign) -> tuple[list[str], Counter[str]]:
    """What is wrong, a kind a line or more, and how often which status came from which door."""
    wrong, seen = [], Counter[str]()
    every = doors(look_around(server))
    chosen = {name: door for name, door in every.items() if not asked.only or name in asked.only}
    for name, door in chosen.items():
        logged, start = _logged(server), time.monotonic()
        for fault in faults(server, name, door, max(1, asked.cases // len(chosen)), asked, seen):
            wrong.append(f"{name}: {fault}")
        new = _logged(server)[len(logged) :]
        wrong += [f"{name}: the log says: {new[one.start() :][:3_000]}" for one in islice(LOGGED.finditer(new), 3)]
        count = sum(times for key, times in seen.items() if key.split()[0] == name)
        print(f"{name}: {count} requests in {time.monotonic() - start:.0f} s, {len(wrong)} faults.", file=sys.stderr)
    return wrong, seen


def faults(
    server: Server, name: str, door: st.SearchStrategy[Request], cases: int, asked: Campaign, seen: Counter[str]
) -> list[str]:
    """The kinds of fault at one door, each with the shortest request that showed it. All cases are tried: what is
    wrong with one is no reason to leave the others out."""
    found: dict[str, str] = {}

    @hypothesis.seed(asked.seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(door)
    def answered(request: Request) -> None:
        answer = sent(server, request, asked.patience)
        seen[f"{name} {answer.status}"] += 1
        try:
            judged(server, request, answer, asked.patience)
        except Fault as fault:
            told = f"{fault}\n  {request!r}"
            kind = CHANGING.sub("", str(fault))[:70]
            if kind not in found or len(told) < len(found[kind]):
                found[kind] = told

    answered()
    return list(found.values())


def settled(server: Server, threads: int, descriptors: int, seconds: float = SETTLE_SECONDS) -> list[str]:
    """What stays in use though nobody asks any more."""
    end = time.monotonic() + seconds
    while True:
        now, left = usage(server), leftovers(server)
        found = [f"leaked file: {name}" for name in left[:5]]
        if now.threads > threads + MORE_THREADS:
            found.append(f"leaked threads: {threads} before, {now.threads} after")
        if now.descriptors > descriptors + MORE_DESCRIPTORS:
            found.append(f"leaked descriptors: {descriptors} before, {now.descriptors} after")
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.5)


def _logged(server: Server) -> str:
    return server.log.read_text(errors="replace") if server.log else ""


def _table(seen: Counter[str]) -> Iterable[str]:
    names = sorted({key.split()[0] for key in seen})
    for name in names:
        each = {key.split()[1]: count for key, count in sorted(seen.items()) if key.split()[0] == name}
        yield f"{name:<12}{sum(each.values()):>7}  " + "  ".join(f"{status}: {count}" for status, count in each.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="at all doors together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same (default: %(default)s)")
    parser.add_argument("--doors", default="", help="some of them, with commas between (default: all)")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds an answer may take")
    arguments = parser.parse_args()
    only = tuple(name for name in arguments.doors.split(",") if name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "served"
        folder.mkdir()
        with served(folder) as server:
            asked = Campaign(min(100, arguments.cases), arguments.seed + 1, max(60.0, arguments.patience), only)
            warm_up(server)
            campaign(server, asked)  # what is loaded once is loaded
            before, start = usage(server), time.monotonic()
            forget_peak(server)
            wrong, seen = campaign(server, Campaign(arguments.cases, arguments.seed, arguments.patience, only))
            wrong += settled(server, before.threads, before.descriptors)
            after, (longest, at) = usage(server), held(server)
        wrong += [f"left behind at the end: {path.name}" for path in folder.glob("csm-app-*")]
    print("\n".join(_table(seen)))
    print(
        f"{sum(seen.values())} requests in {time.monotonic() - start:.0f} s; memory {before.memory:.0f} MB before, "
        f"{after.peak:.0f} at most, {after.memory:.0f} after; threads {before.threads} and {after.threads}, "
        f"descriptors {before.descriptors} and {after.descriptors}; the interpreter was held for {longest:.2f} s."
    )
    if longest > HOLD:
        print("When it was let go, threads were at:\n" + "\n\n".join("\n".join(stack) for stack in at))
    for fault in wrong:
        print(f"\nFAULT {fault}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
