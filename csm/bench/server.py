"""What listeners get: a real server in a process of its own, real clients on loopback, one and several at once.

Everything between a request and its last sample counts here, which the other measurements leave out: HTTP, the queue,
the mark, the encoding, threads.
"""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from csm.bench.figures import percentile
from csm.config import SAMPLE_RATE, Environment
from csm.errors import InputError

TEXT = (
    "I think I left my umbrella in the restaurant, so I have to go back. "
    "It was raining all morning, and now the sun is out, which is nice."
)
HOST = "127.0.0.1"
START_SECONDS = 180.0  # at most, until the server answers
ANSWER_SECONDS = 120.0  # at most, between two pieces of an answer
BYTES_A_SECOND = 2 * SAMPLE_RATE
ROUNDS = 3
REQUESTS = 2  # of each client in a round, one after the other


@dataclass(frozen=True)
class Heard:
    """One answer, in seconds: of sound, until its first sample, and until its last."""

    sound: float
    first: float
    whole: float


@dataclass(frozen=True)
class Running:
    """A server: its port, and the number of its process."""

    port: int
    pid: int


@contextmanager
def serving(model: str | None, device: str, **environment: str) -> Iterator[Running]:
    """A server with this `environment`, started for the block and ended after it. Raises `InputError`."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    changes = {"GRADIO_SERVER_NAME": HOST, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    changes |= {"CSM_API_KEY": ""} | environment
    command = [sys.executable, "-m", "csm", "serve", "--device", device, *(["--model", model] if model else [])]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=Environment.changed(**changes), stdout=quiet, stderr=quiet)
    try:
        give_up = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None:
                raise InputError("The server ended before it answered: see what `csm serve` says.")
            if time.monotonic() > give_up:
                raise InputError(f"The server did not answer within {START_SECONDS:.0f} seconds.")
            time.sleep(0.2)
        yield Running(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def ask(port: int, seed: int, text: str = TEXT) -> Heard:
    """Have `text` read aloud as a stream of samples. Raises `InputError` for an answer without sound."""
    body = {"input": text, "voice": "alloy", "response_format": "pcm", "seed": seed}
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
    start, first, count = time.perf_counter(), None, 0
    try:
        connection.request("POST", "/v1/audio/speech", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while piece := answer.read1(1 << 16):
            first, count = first or time.perf_counter() - start, count + len(piece)
        if answer.status != 200 or first is None:
            raise InputError(f"The server answered with status {answer.status} and no sound.")
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"The server broke off: {error}.") from error
    finally:
        connection.close()
    return Heard(count / BYTES_A_SECOND, first, time.perf_counter() - start)


def together(port: int, clients: int, requests: int, seed: int) -> tuple[list[Heard], float]:
    """What so many clients hear who begin at the same moment, each asking `requests` times, and the seconds until the
    last of them is done. Raises what `ask` raises."""
    heard: list[Heard] = []
    failed: list[BaseException] = []
    begin = threading.Barrier(clients + 1)

    def listen(number: int) -> None:
        begin.wait()
        try:
            for request in range(requests):
                heard.append(ask(port, seed + number * requests + request))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=listen, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return heard, time.perf_counter() - start


def bench_server(model: str | None, device: str, clients: tuple[int, ...], rounds: int = ROUNDS) -> dict[str, Any]:
    """For each number of `clients` at once, the medians over `rounds`; the numbers take turns, so that a machine that
    is busy for a while is so for all of them. Raises `InputError`."""
    found: dict[int, list[tuple[list[Heard], float]]] = {count: [] for count in clients}
    with serving(model, device) as running:
        port = running.port
        ask(port, 0)
        together(port, max(clients), 1, 0)  # warm: what is recorded, compiled or read first is there
        for number in range(rounds):
            for count in clients:
                print(f"Round {number + 1} of {rounds}: {count} at once.", file=sys.stderr)
                found[count].append(together(port, count, REQUESTS, 1_000 * (number + 1)))
    figures = {str(count): _figures(each) for count, each in found.items()}
    one = figures[str(min(clients))]
    for each in figures.values():
        each["times_one"] = round(each["sound_per_second"] / one["sound_per_second"], 2)
        each["first_p95_times_one"] = round(each["first_seconds_p95"] / one["first_seconds_median"], 2)
    return {"server": {"model": model, "device": device, "rounds": rounds, "clients": figures}}


def _figures(rounds: list[tuple[list[Heard], float]]) -> dict[str, float]:
    every = [heard for one, _ in rounds for heard in one]
    firsts = [heard.first for heard in every]
    paces = [heard.sound / heard.whole for heard in every]
    figures = {
        "sound_per_second": statistics.median(sum(heard.sound for heard in one) / seconds for one, seconds in rounds),
        "client_median": statistics.median(paces),
        "client_min": min(paces),
        "first_seconds_median": statistics.median(firsts),
        "first_seconds_p95": percentile(firsts, 95),
    }
    return {name: round(value, 3) for name, value in figures.items()}


def server_table(figures: dict[str, Any]) -> str:
    """The figures as lines of text."""
    head = ("clients", "sound/s", "× one", "client ×", "min ×", "first ms", "p95 ms", "p95 × one's")
    lines = ["".join(f"{cell:>12}" for cell in head)]
    for count, each in figures["server"]["clients"].items():
        cells = (
            count,
            f"{each['sound_per_second']:.2f}",
            f"{each['times_one']:.2f}",
            f"{each['client_median']:.2f}",
            f"{each['client_min']:.2f}",
            f"{1000 * each['first_seconds_median']:.0f}",
            f"{1000 * each['first_seconds_p95']:.0f}",
            f"{each['first_p95_times_one']:.2f}",
        )
        lines.append("".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
