"""What somebody who talks waits for: a real server, real speech at the pace at which it is spoken, and each answer
interrupted by the next question; every step's share, with the embedded language model and one that answers at once.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from csm.bench.figures import spread
from csm.bench.server import HOST, serving
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.extras import install
from csm.speech.voices import load_prompt, shipped_voices
from csm.talk import embedded
from csm.talk.hearing import Ears

ROUNDS = 10  # questions to each language model
CHUNK = SAMPLE_RATE // 25  # samples of one message, as the page's microphone sends them
LISTENED = 0.8  # seconds of an answer that are listened to before the next question interrupts it
SILENCE = 1.0  # seconds before the first question
PATIENCE = 30.0  # seconds to wait for an answer
SPEAKERS = ("bdl", "clb", "ksp", "slt")  # whose pauses the detectors of turns take for such: Flite's they don't
LOUD = 0.02  # RMS of a window of speech
WINDOW = 768
STUB = "stub"
ANSWER = "Yes, I have thought about that for a while, and I would like to hear more of it."
# Each step, what it is, and those behind which it begins: it took the time since the last of them.
STEPS = {
    "noticed": ("a pause is noticed", ()),
    "recognised": ("its words are found", ("noticed",)),
    "first_word": ("the language model's first word", ("recognised",)),
    "first_clause": ("its first clause", ("first_word",)),
    "first_sound_made": ("CSM's first sound is made", ("first_clause",)),
    "over": ("the turn is known to be over", ("noticed",)),
    "first_sound": ("the first sound leaves", ("over", "first_sound_made")),
}


class _Answers(BaseHTTPRequestHandler):
    """A chat API that says the same at once, whatever it is told."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"data: {json.dumps({'choices': [{'delta': {'content': ANSWER}}]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def stub() -> Iterator[str]:
    """The address of a language model that answers at once."""
    with ThreadingHTTPServer((HOST, 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_address[1]}/v1"
        server.shutdown()


def questions() -> list[np.ndarray]:
    """Sentences of the shipped voices, from their first sound to their last, float32 (num_samples,) at 24 kHz."""
    voices = shipped_voices()
    return [half for name in SPEAKERS if name in voices for half in halves(load_prompt(voices[name]).numpy())]


def halves(wave: np.ndarray) -> list[np.ndarray]:
    """A recording of two sentences, cut at the longest pause in its middle, without the silence around them."""
    levels = np.sqrt(np.mean(np.square(wave[: len(wave) // WINDOW * WINDOW].reshape(-1, WINDOW)), axis=1))
    loud = np.flatnonzero(levels > LOUD)
    middle = loud[(loud > 0.35 * len(levels)) & (loud < 0.65 * len(levels))]
    at = middle[int(np.argmax(np.diff(middle)))]
    parts = loud[loud <= at], loud[loud > at]
    return [wave[part[0] * WINDOW : (part[-1] + 1) * WINDOW] for part in parts]


@dataclass
class Asked:
    """What one question gave, in seconds: from its last sound to the answer's first, the same for each step, and from
    its first sound until the answer before it was stopped (None where there was none)."""

    answer: str
    first: float
    stopped: float | None
    steps: dict[str, float] = field(default_factory=dict)


class _Caller:
    """One talk over a websocket: sound goes out at its own pace, and of what comes in it is kept when that was."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._loop = socket, asyncio.get_running_loop()
        self._speech: np.ndarray = np.zeros(0, dtype=np.float32)
        self._news = asyncio.Event()
        self._firsts: dict[str, float] = {}  # of each answer, when its first sound came
        self._steps: dict[str, dict[str, float]] = {}  # of those that are done
        self._begun: list[float] = []  # when each beginning of speech was told
        self._refused = ""

    async def speak(self) -> None:
        """Send silence, and what `ask` puts in its place, for ever."""
        start, count = self._loop.time(), 0
        while True:
            piece, self._speech = self._speech[:CHUNK], self._speech[CHUNK:]
            count += 1
            await asyncio.sleep(start + count * CHUNK / SAMPLE_RATE - self._loop.time())
            piece = np.pad(piece, (0, CHUNK - len(piece)))
            data = base64.b64encode((piece * 32_767).astype("<i2").tobytes()).decode()
            await self._socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": data}))

    async def listen(self) -> None:
        """Note what comes."""
        async for message in self._socket:
            event, now = json.loads(message), self._loop.time()
            if event["type"] == "input_audio_buffer.speech_started":
                self._begun.append(now)
            elif event["type"] == "response.output_audio.delta":
                self._firsts.setdefault(event["response_id"], now)
            elif event["type"] == "response.done":
                self._steps[event["response"]["id"]] = event["response"]["csm"]["steps"]
            elif event["type"] == "error":
                self._refused = event["error"]["message"]
            self._news.set()
        self._refused = self._refused or "the connection was closed."
        self._news.set()

    async def ask(self, wave: np.ndarray) -> Asked:
        """Say `wave` until an answer to all of it begins. Raises `InputError` where none does."""
        answers, told, begins = len(self._firsts), len(self._begun), self._loop.time()
        ends = begins + len(wave) / SAMPLE_RATE
        self._speech = wave
        await self._until(lambda: any(first > ends for first in self._firsts.values()))
        name, first = next((name, first) for name, first in self._firsts.items() if first > ends)
        stopped = self._begun[told] - begins if answers and len(self._begun) > told else None
        return Asked(name, first - ends, stopped)

    async def settled(self, asked: list[Asked]) -> list[Asked]:
        """With their steps, which are told when an answer is over."""
        await self._until(lambda: all(one.answer in self._steps for one in asked))
        for one in asked:
            one.steps = self._steps[one.answer]
        return asked

    async def _until(self, there: Callable[[], bool]) -> None:
        until = self._loop.time() + PATIENCE
        while not there():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, until - self._loop.time()))
            except asyncio.TimeoutError:
                self._refused = self._refused or f"nothing came for {PATIENCE:.0f} seconds."
            if self._refused:
                raise InputError(f"The talk broke off: {self._refused}", "talk_broke_off")


async def talked(port: int, model: str, rounds: int) -> list[Asked]:
    """A talk of so many questions at the server's `port`, each interrupting the answer to the one before. Raises
    `InputError`."""
    from websockets.asyncio.client import connect

    said, asked = questions(), list[Asked]()
    async with connect(f"ws://{HOST}:{port}/v1/realtime?model={model}", proxy=None, max_size=None) as socket:
        caller = _Caller(socket)
        detection = {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}  # as the page asks for
        await socket.send(json.dumps({"type": "session.update", "session": detection}))
        tasks = [asyncio.create_task(work) for work in (caller.listen(), caller.speak())]
        try:
            await asyncio.sleep(SILENCE)
            for number in range(rounds + 1):
                asked.append(await caller.ask(said[number % len(said)]))
                await asyncio.sleep(LISTENED)
            return (await caller.settled(asked))[1:]  # the first one warmed up
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def bench_talk(model: str | None, device: str, rounds: int) -> dict[str, Any]:
    """The steps of talks with each language model. Raises `InputError`."""
    if not all(map(importlib.util.find_spec, ("websockets", "moonshine_voice"))):
        raise InputError(f"A talk needs what is not installed: run `{install('talk')}`.", "not_installed")
    figures: dict[str, Any] = {}
    with stub() as address, serving(model, device, CSM_LLM_URL=address, CSM_LLM_KEY="", CSM_LLM_MODEL=STUB) as running:
        for name in (STUB, *((embedded.NAME,) if embedded.available() else ())):
            print(f"Asking {rounds} questions of {name}.", file=sys.stderr)
            figures[name] = figures_of(asyncio.run(talked(running.port, name, rounds)))
    return {
        "talk": {
            "model": model,
            "device": device,
            "rounds": rounds,
            "smart_turn": Ears().endings is not None,
            **figures,
        }
    }


def figures_of(asked: list[Asked]) -> dict[str, Any]:
    """Spreads in seconds: when each step was done (`at`), what it took, the first sound at the client, and stopping."""
    at = {step: spread([one.steps[step] for one in asked if step in one.steps]) for step in STEPS}
    took = {
        step: spread(
            [
                one.steps[step] - max((one.steps[other] for other in behind if other in one.steps), default=0.0)
                for one in asked
                if step in one.steps
            ]
        )
        for step, (_, behind) in STEPS.items()
    }
    heard = spread([one.first for one in asked])
    stopped = spread([one.stopped for one in asked if one.stopped is not None])
    return {"at": at, "took": took, "first_sound_heard": heard, "stopped": stopped}


def talk_table(figures: dict[str, Any]) -> str:
    """The figures as lines of text, in milliseconds from the last sound of the question."""
    lines = []
    for name, found in figures["talk"].items():
        if not isinstance(found, dict):
            continue
        lines += [f"{name:<36}{'took':>8}{'p95':>8}{'at':>8}{'p95':>8}"]
        for step, (words, _) in STEPS.items():
            lines.append(f"  {words:<34}{_cells(found['took'][step])}{_cells(found['at'][step])}")
        lines.append(f"  {'it is heard':<34}{'':>16}{_cells(found['first_sound_heard'])}")
        lines.append(f"  {'an answer stops, interrupted, after':<34}{_cells(found['stopped'])}")
    return "\n".join(lines)


def _cells(found: dict[str, float] | None) -> str:
    return f"{'-':>8}{'-':>8}" if found is None else f"{1000 * found['median']:>8.0f}{1000 * found['p95']:>8.0f}"
