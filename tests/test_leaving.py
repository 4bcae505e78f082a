"""A client that goes away, cancels or falls silent ends its work at once, whichever door it came through."""

import gc
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import torch

from csm.audio import write_audio
from csm.conversation.session import Session
from csm.talk.mouth import Mouth
from csm.web import (
    Pages,
    build_app,
    doors,
    events,
    following,
    inside,
    launch_options,
    open_studio,
    realtime,
    server_options,
)
from csm.web.listeners import listener
from csm.web.realtime import Talks
from tests.small import small_generator
from tests.talking import Script, ScriptedEars

connect = pytest.importorskip("websockets.sync.client").connect

PATIENCE = 60.0  # seconds, after which something is no longer waited for
LINES = 200  # turns: work for much longer than any test needs
TURN = "And so it goes on and on, as long as somebody listens, and then a little longer."
SCRIPT = "\n".join(f"{'AB'[number % 2]}: {TURN}" for number in range(LINES))
SPEAK = Mouth.speak
LATE = 12  # frames: the thread that makes them may be that far ahead of the one that takes them, on a busy machine


class House:
    """The app on a port, over a small model; what its jobs did is counted."""

    def __init__(self) -> None:
        self.generator = small_generator(max_positions=2_048)
        self.pace = 0.005  # seconds that a frame takes at least
        self.jobs: list = []
        self.ended: list[bool] = []  # of each job, whether it was stopped or broken off
        self.frames = self.late = 0  # that were made, and of them after the job was stopped
        self._sample = self.generator.engine.model.sample_frame
        self.generator.engine.model.sample_frame = self._frame
        self.studio = open_studio(self.generator)
        self.pages = Pages(self.studio)
        talks = Talks(self.studio, ScriptedEars(), {"words": Script([])}, self.pages)
        self.app = build_app(self.studio, self.pages)
        kept = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
        options = server_options(self.studio, self.pages, talks)
        self.studio.watch = self._watched
        _, url, _ = self.app.launch(**launch_options() | options | kept)
        self.port = int(url.rstrip("/").rpartition(":")[2])

    def _frame(self, *given):
        time.sleep(self.pace)
        self.late += any(job.stopped() for job in self.jobs)
        self.frames += 1
        return self._sample(*given)

    def _watched(self, job, events) -> Iterator:
        self.jobs.append(job)
        done = False
        try:
            yield from events
            done = True
        finally:
            events.close()
            self.ended.append(job.stopped() or not done)

    def _answered(self, mouth, voice, before, clauses, settings, stop, tell) -> None:
        """An answer of a talk is a job, too."""
        self.jobs.append(SimpleNamespace(stopped=stop, folder=Path("none")))
        try:
            SPEAK(mouth, voice, before, clauses, settings, stop, tell)
        finally:
            self.ended.append(stop())

    def begin(self) -> None:
        assert until(lambda: self.studio.queue.counts() == (0, 0))
        self.jobs, self.ended, self.frames, self.late = [], [], 0, 0

    def speaks(self) -> bool:
        """Whether sound is made, once it is."""
        return until(lambda: self.frames > 4)

    def assert_ended(self) -> None:
        assert until(lambda: len(self.ended) == len(self.jobs) > 0 and self.studio.queue.counts() == (0, 0))
        assert self.ended[-1] and not any(self.ended[:-1]) and self.late <= LATE, (self.ended, self.late, self.frames)
        assert until(lambda: not any(job.folder.exists() for job in self.jobs))


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture(scope="module")
def app_of_small(tmp_path_factory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSM_SLOTS", "1")  # a batch may be some frames ahead of who takes them
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("files")))
        made = House()
        patch.setattr(Mouth, "speak", lambda *given: made._answered(*given))
        try:
            yield made
        finally:
            made.app.close()
            made.pages.place.close()


@pytest.fixture
def house(app_of_small) -> House:
    app_of_small.begin()
    return app_of_small


def narrow(house: House) -> socket.socket:
    """A connection in which hardly anything is on its way."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    if hasattr(socket, "TCP_MAXSEG"):  # loopback's large packets make the sender's buffer a megabyte
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    line.connect(("127.0.0.1", house.port))
    return line


def asked(house: House, path: str, body: dict | bytes, kind: str = "application/json", **more: str) -> socket.socket:
    """A connection on which this was asked and nothing was read yet."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Host": f"127.0.0.1:{house.port}", "Content-Type": kind, "Content-Length": str(len(data))} | more
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    line = narrow(house)
    line.sendall(f"{'POST' if data else 'GET'} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
    return line


def answer(house: House, path: str, body: dict | bytes, kind: str = "application/json", **more: str) -> dict | list:
    with asked(house, path, body, kind, Connection="close", **more) as line:
        return json.loads(line.makefile("rb").read().partition(b"\r\n\r\n")[2])


def functions(house: House) -> dict[str, int]:
    with urlopen(f"http://127.0.0.1:{house.port}/config", timeout=PATIENCE) as told:
        return {one["api_name"]: one["id"] for one in json.loads(told.read())["dependencies"]}


def called(house: House, name: str, data: list) -> tuple[socket.socket, dict]:
    """A connection on which a call of Gradio's is followed, and what cancels it."""
    number, session = functions(house)[name], secrets.token_hex(6)
    body = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None}
    event = answer(house, "/gradio_api/queue/join", body)["event_id"]
    line = asked(house, f"/gradio_api/queue/data?session_hash={session}", b"")
    return line, {"session_hash": session, "fn_index": number, "event_id": event}


def generate(house: House) -> tuple[socket.socket, dict]:
    return called(house, "generate", [SCRIPT, "slt", "bdl", 7, 0.9, 50, 90, None, "", None, ""])


def speech(house: House, **more) -> socket.socket:
    spoken = {"input": f"{TURN} " * 50, "voice": "slt", "response_format": "pcm"}
    return asked(house, "/v1/audio/speech", spoken | more)


def dialogue(house: House, **more) -> socket.socket:
    """Whole, it must not be longer than five minutes."""
    script = SCRIPT if "stream_format" in more else "\n".join(SCRIPT.splitlines()[:20])
    return asked(house, "/v1/audio/dialogue", {"input": script, "response_format": "pcm"} | more)


def page(house: House, token: str = "") -> socket.socket:
    form = {"token": token or secrets.token_hex(16), "script": SCRIPT, "settings": {"max_turn_seconds": 90}}
    return asked(house, "/csm/speak", form)


def mcp(house: House) -> socket.socket:
    given = {"script": SCRIPT, "voice_a": "slt", "voice_b": "bdl", "max_turn_seconds": 90}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "generate", "arguments": given}}
    return asked(house, "/gradio_api/mcp/", call, Accept="application/json, text/event-stream")


@contextmanager
def texts(house: House):
    address = f"ws://127.0.0.1:{house.port}/v1/audio/speech/stream"
    with connect(address, sock=narrow(house), max_queue=1, close_timeout=0.1) as line:
        line.send(json.dumps({"type": "session.config", "voice": "slt", "response_format": "pcm"}))
        line.send(json.dumps({"type": "input.text", "text": f"{TURN} " * 50}))
        yield line


@contextmanager
def talk(house: House):
    with connect(f"ws://127.0.0.1:{house.port}/v1/realtime", proxy=None) as line:
        settings = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        line.send(json.dumps({"type": "session.update", "session": settings}))
        line.send('{"type": "response.create", "response": {"instructions": "Go on."}}')
        yield line


ASKING = {
    "v1": speech,
    "v1, whole": lambda house: speech(house, response_format="flac"),
    "dialogue": dialogue,
    "dialogue, streamed": lambda house: dialogue(house, stream_format="audio"),
    "page": page,
    "generate": lambda house: generate(house)[0],
    "MCP": mcp,
    "stream of text": texts,
    "talk": talk,
}


@pytest.mark.parametrize("door", ASKING)
def test_who_goes_away_ends_the_work_at_once(house, door):
    with ExitStack() as leaving:
        leaving.enter_context(ASKING[door](house))
        assert house.speaks()
    house.assert_ended()


def test_who_cancels_on_the_page_ends_the_work_at_once(house):
    token = secrets.token_hex(16)
    with page(house, token) as line:
        assert house.speaks()
        assert answer(house, "/csm/stop", {"token": token}) == {}
        house.assert_ended()
        told = b""
        while b'"type": "end"' not in told:
            told += line.recv(1 << 16)


def test_who_cancels_a_call_ends_the_work_at_once(house):
    line, cancel = generate(house)
    with line:
        assert house.speaks()
        answer(house, "/gradio_api/cancel", cancel)
        house.assert_ended()


def test_who_cancels_an_answer_in_a_talk_ends_the_work_at_once(house):
    with talk(house) as line:
        assert house.speaks()
        line.send('{"type": "response.cancel"}')
        house.assert_ended()


@pytest.mark.parametrize("door", ["v1", "dialogue, streamed", "page"])
def test_who_takes_nothing_ends_the_work_at_once(house, door, monkeypatch):
    for module in (doors, following, realtime):
        monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(house, "pace", 0.02)  # a turn is not over before the silence is
    with ExitStack() as silent:
        silent.enter_context(ASKING[door](house))
        house.assert_ended()


def test_who_leaves_while_a_project_is_opened_has_it_opened_no_further(house, monkeypatch):
    token = secrets.token_hex(16)
    form = {"token": token, "script": "A: One.\nB: Two.\n" * 20, "settings": {"max_turn_seconds": 0.16}}
    with asked(house, "/csm/speak", form, Connection="close") as line:
        line.makefile("rb").read()
    with urlopen(f"http://127.0.0.1:{house.port}/csm/save/{token}/csm", timeout=PATIENCE) as saved:
        project = saved.read()
    decoded, own_pace = [], Session.own_pace

    def slowly(*given):
        decoded.append(given)
        time.sleep(0.1)
        return own_pace(*given)

    monkeypatch.setattr(Session, "own_pace", slowly)
    other = secrets.token_hex(16)
    with asked(house, f"/csm/open?token={other}", project, "application/octet-stream"):
        assert until(lambda: bool(decoded))
    assert until(lambda: house.studio.queue.counts() == (0, 0))
    opened = house.pages.known(other)
    assert len(decoded) < 40 and opened is not None
    assert until(lambda: not [*opened.folder.iterdir()]) and opened.session is None


def test_who_leaves_while_a_clip_is_taken_apart_has_it_taken_no_further(house, monkeypatch, tmp_path):
    steps = []

    def first_layers(*_) -> torch.Tensor:
        steps.append(listener())
        assert until(steps[-1].gone), "nobody saw that the client went"
        return torch.zeros(1_920)

    monkeypatch.setattr(inside, "first_layers", first_layers)
    write_audio(tmp_path / "tone.wav", 0.3 * torch.sin(torch.arange(12_000) / 9))
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="tone.wav"\r\n\r\n'
    form = head + (tmp_path / "tone.wav").read_bytes() + b"\r\n--x--\r\n"
    (path,) = answer(house, "/gradio_api/upload", form, "multipart/form-data; boundary=x")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    line, _ = called(house, "look", ["file", file, "A tone.", None])
    with line:
        assert until(lambda: bool(steps))
    assert until(lambda: house.studio.queue.counts() == (0, 0))
    assert len(steps) == 1


def test_a_call_that_is_over_is_forgotten_once_its_end_was_told_or_after_an_hour(house, monkeypatch):
    blocks, after = house.app, time.monotonic() + 60
    told, waits = (answer(house, "/gradio_api/call/voices", {"data": []})["event_id"] for _ in range(2))
    with asked(house, f"/gradio_api/call/voices/{told}", b"", Connection="close") as line:
        assert b"event: complete" in line.makefile("rb").read()
    assert until(lambda: blocks._queue.event_analytics.get(waits, {}).get("status") == "success")
    assert {told, waits} <= blocks._queue.event_ids_to_events.keys() & blocks.state_holder.session_data.keys()
    assert blocks._queue.event_ids_to_events[waits].data is not None
    events.forget(blocks, after)
    assert blocks._queue.event_ids_to_events[waits].data is None, "what was asked is kept"
    assert told not in blocks._queue.event_ids_to_events and told not in blocks.state_holder.session_data
    assert waits in blocks._queue.event_ids_to_events and waits in blocks.state_holder.session_data
    assert not any(session.config_values.items() for session in blocks.state_holder.session_data.values())
    with monkeypatch.context() as patch:
        patch.setattr(events, "MOST_UNTOLD", 0)
        patch.setattr(events, "KEPT_SECONDS", 1e9)
        events.forget(blocks, after)
    left = (blocks._queue.event_ids_to_events, blocks._queue.event_analytics, blocks._queue.pending_event_ids_session)
    assert not any(waits in kept or told in kept for kept in left)
    assert not blocks._queue.cached_event_analytics_summary["functions"], "figures of all calls are worked out"


def test_what_is_there_when_the_server_starts_is_not_looked_through_again(house):
    """A search for cycles in all of it holds the interpreter for longer than any request may."""
    assert gc.get_freeze_count() > 100_000
