"""Those of whom `csm bench --soak` makes its crowd: a page, a program and a talker as a server sees them, and the
language model that the talkers talk with, which answers each with the text that was asked for."""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

from csm.bench.server import ANSWER_SECONDS, HOST

TEXTS = (
    "Good morning. The rain has stopped, and the garden is full of birds.",
    "I think I left my umbrella in the restaurant, so I have to go back.",
    "Nobody told me about the meeting, and now it is too late to go.",
    "Seven of the boats came home before dark. The others waited for the wind.",
    "We could take the train at nine, or walk along the river instead.",
    "She wrote the letter twice, and in the end she sent neither of them.",
)
VOICES = ("slt", "bdl", "clb", "rms")
BROKEN: tuple[type[Exception], ...] = (OSError, http.client.HTTPException, ValueError, RuntimeError)
AGAIN = re.compile(r"try again in (\d+) seconds")
TALK_AGAIN = 5.0  # seconds after which a talker tries again, who is told no time


class Away(Exception):
    """Sent away: so many `seconds` to wait, and whether the server keeps a place for whoever waits as it said."""

    def __init__(self, seconds: float, as_told: bool) -> None:
        super().__init__(f"sent away for {seconds:.0f} seconds")
        self.seconds, self.as_told = seconds, as_told


@dataclass(frozen=True)
class Heard:
    """What came: int16 (num_samples,), or None where the same is never said twice in the same way; the words where they
    are told; seconds to the first sound; whether the client left before the end."""

    sound: np.ndarray | None
    words: str | None
    first: float | None
    left: bool


class _Answer:
    """An answer that is read until it ends or its reader has had enough."""

    def __init__(self, port: int, path: str, body: dict[str, Any], who: str, leaves: float | None) -> None:
        self.start, self.leaves, self.left = time.monotonic(), leaves, False
        self._line = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {who}"}
        self._line.request("POST", path, json.dumps(body), headers)

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line.close()

    def head(self) -> http.client.HTTPResponse | None:
        """None for one who left before it came."""
        with suppress(TimeoutError):
            self._patient()
            return self._line.getresponse()
        self._enough()
        return None

    def read(self, response: http.client.HTTPResponse) -> bytes:
        """The next bytes, none at the end and for one who leaves."""
        with suppress(TimeoutError):
            self._patient()
            if not self.left:
                return response.read1(1 << 14)
        self._enough()
        return b""

    def _patient(self) -> None:
        if self.leaves is not None:
            rest = self.start + self.leaves - time.monotonic()
            self.left = rest <= 0
            if self._line.sock is not None:
                self._line.sock.settimeout(max(0.01, rest))

    def _enough(self) -> None:
        if self.leaves is None:
            raise TimeoutError(f"nothing came for {ANSWER_SECONDS:.0f} seconds")
        self.left = True


def program(port: int, text: int, who: str, leaves: float | None = None) -> Heard:
    """A text read aloud. Raises `Away`, and what is in `BROKEN`."""
    voice = VOICES[text % len(VOICES)]
    body = {"input": TEXTS[text], "voice": voice, "response_format": "pcm", "seed": text}
    first, data = None, bytearray()
    with _Answer(port, "/v1/audio/speech", body, who, leaves) as answer:
        if (response := answer.head()) is not None:
            if response.status == 503:
                raise Away(float(response.headers.get("Retry-After", "1")), True)
            if response.status != 200:
                raise ValueError(f"status {response.status}: {response.read(300)!r}")
            while piece := answer.read(response):
                first, data = first or time.monotonic() - answer.start, data + piece
        return Heard(_samples(data), None, first, answer.left)


def page(port: int, text: int, who: str, leaves: float | None = None) -> Heard:
    """A conversation of two turns, as the page's script asks for it. Raises `Away`, and what is in `BROKEN`."""
    script = f"A: {TEXTS[text]}\nB: {TEXTS[-1 - text]}"
    body = {"token": secrets.token_hex(16), "script": script, "voices": {"A": "slt", "B": "bdl"}}
    first, data, rest, ended = None, bytearray(), b"", False
    with _Answer(port, "/csm/speak", body | {"settings": {"seed": text}}, who, leaves) as answer:
        response = answer.head()
        if response is not None and response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300)!r}")
        while response is not None and (piece := answer.read(response)):
            *lines, rest = (rest + piece).split(b"\n\n")
            for line in lines:
                told = json.loads(line.removeprefix(b"data: "))
                if told["type"] == "error":
                    raise _sent_away(told.get("code"), told["error"])
                if told["type"] == "sound":
                    first = first or time.monotonic() - answer.start
                    data += base64.b64decode(told["pcm"])
                ended = told["type"] == "end"
        if not (ended or answer.left):
            raise ValueError("the page's answer broke off")
        return Heard(_samples(data), None, first, answer.left)


def talker(port: int, text: int, who: str, leaves: float | None = None) -> Heard:
    """One question, typed, and its answer in a talk. Raises `Away`, and what is in `BROKEN`."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    start, first, words = time.monotonic(), None, ""
    asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"Text {text}, please."}]}
    events = (
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
        },
        {"type": "conversation.item.create", "item": asked},
        {"type": "response.create"},
    )
    try:
        header = {"Authorization": f"Bearer {who}"}
        with connect(f"ws://{HOST}:{port}/v1/realtime", additional_headers=header, proxy=None) as line:
            for event in events:
                line.send(json.dumps(event))
            while leaves is None or time.monotonic() - start < leaves:
                patience = ANSWER_SECONDS if leaves is None else max(0.01, start + leaves - time.monotonic())
                try:
                    told = json.loads(line.recv(patience))
                except TimeoutError:
                    if leaves is None:
                        raise
                    break
                if told["type"] == "error":
                    raise _sent_away(told["error"].get("code"), told["error"]["message"])
                if told["type"] == "response.output_audio.delta":
                    first = first or time.monotonic() - start
                if told["type"] == "response.output_audio_transcript.delta":
                    words += told["delta"]
                if told["type"] == "response.done":
                    if told["response"]["status"] != "completed":
                        details = (told["response"].get("status_details") or {}).get("error") or {}
                        raise _sent_away(details.get("code"), str(details.get("message", "the answer failed")))
                    return Heard(None, words, first, False)
            return Heard(None, words, first, True)
    except WebSocketException as error:
        raise ConnectionError(str(error)) from error


def _sent_away(code: str | None, sentence: str) -> Exception:
    found = AGAIN.search(sentence)
    if found is not None:
        return Away(float(found[1]), code == "queue_full")
    return ValueError(sentence)


def _samples(data: bytearray) -> np.ndarray:
    return np.frombuffer(bytes(data[: len(data) // 2 * 2]), "<i2")


class LanguageModel:
    """A chat API in a thread of its own for the length of a block: asked for text 3, it says text 3."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer((HOST, 0), _Chat)

    def environment(self) -> dict[str, str]:
        """What tells a server of it."""
        address = f"http://{HOST}:{self._server.server_address[1]}/v1"
        return {"CSM_LLM_URL": address, "CSM_LLM_MODEL": "texts", "NO_PROXY": HOST}

    def __enter__(self) -> LanguageModel:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Chat(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = re.findall(r"Text (\d)", json.dumps(asked["messages"]))[-1]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with suppress(OSError):  # who asked may have gone
            for word in re.findall(r"\S+\s*", TEXTS[int(number)]):
                told = {"choices": [{"index": 0, "delta": {"content": word}}]}
                self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *given: Any) -> None:
        pass
