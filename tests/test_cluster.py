"""A cluster: which replica a request goes to, what passes through the front, and what is said when a replica ends."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn
from gradio import http_server
from gradio.exceptions import ServerFailedToStartError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from csm.cli import main
from csm.conversation.waiting import Closing, Queue
from csm.errors import InputError
from csm.speech.voices import Voice
from csm.web.access import Access
from csm.web.cluster import replica as replicas
from csm.web.cluster.front import COOKIE, Front
from csm.web.cluster.gate import Gate
from csm.web.cluster.options import ClusterOptions
from csm.web.cluster.register import Register, SharedShelf
from csm.web.cluster.roster import FAILED, READY, Standing
from csm.web.v1.shelf import MOST_VOICES
from tests.serving import free_port
from tests.test_roster import standing

SECRET = "known to the front"


@pytest.mark.parametrize(
    "given, told",
    [
        ({"replicas": "many"}, "Replicas can't be many"),
        ({"replicas": "0"}, "Replicas can't be 0"),
        ({"replicas": "4-2"}, "Replicas can't be 4-2"),
        ({"cores": "few"}, "are numbers"),
        ({"cores": 0}, "0 cores"),
        ({"share": 99}, "99 replicas can't share"),
        ({"grace": -1}, "-1 seconds"),
        ({"wrong": 1}, "no option wrong"),
    ],
)
def test_options_that_are_not_possible_are_one_sentence(given, told):
    with pytest.raises(InputError, match=told):
        ClusterOptions.read(given)


def test_without_ray_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr("csm.extras.find_spec", lambda name: None if name == "ray" else object())
    assert main(["serve", "--cluster"]) == 2
    told = capsys.readouterr().err
    assert "[cluster]" in told and told.count("\n") == 1


# What passes through


@contextmanager
def served(app):
    """The port of `app` on a server in a thread, and what ends it at once."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port, server
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


class Stub:
    """A replica that says who it is and what it was asked; `gone` breaks its answers off in the middle."""

    def __init__(self, id: str) -> None:
        self.id, self.gone, self.left = id, asyncio.Event(), threading.Event()
        self.asked: list[str] = []
        routes = [
            Route("/v1/audio/speech", self.speech, methods=["POST"]),
            Route("/csm/speak", self.speech, methods=["POST"]),
            Route("/metrics", self.metrics),
            Route("/{rest:path}", self.echo, methods=["GET", "POST"]),
            WebSocketRoute("/v1/realtime", self.talk),
        ]
        self.app = Gate(self.around(Starlette(routes=routes)), SECRET, "127.0.0.1")

    def around(self, app):
        async def layer(scope, receive, send):
            try:
                await app(scope, receive, send)
            except ConnectionError:
                with suppress(Exception):
                    scope["extensions"]["never"]  # the answer is left without an end

        return layer

    async def echo(self, request):
        self.asked.append(request.url.path)
        body = (await request.body()).decode()
        seen = {"replica": self.id, "path": str(request.url.path), "query": request.url.query, "body": body}
        return JSONResponse(seen | {"host": request.headers["host"], "client": request.client.host})

    async def metrics(self, request):
        return Response("# HELP csm_jobs_total Jobs.\n# TYPE csm_jobs_total counter\ncsm_jobs_total 2.0\n")

    async def speech(self, request):
        asked = await request.json()
        self.asked.append(asked["input"])

        async def parts():
            try:
                for number in range(asked.get("parts", 3)):
                    if number == 2 and asked.get("breaks") == self.id:
                        raise ConnectionError
                    yield f"data: {number}\n\n".encode()
                    await asyncio.sleep(asked.get("every", 0))
            except asyncio.CancelledError:
                self.left.set()
                raise

        return StreamingResponse(parts(), media_type=asked.get("type", "text/event-stream"))

    async def talk(self, socket):
        if socket.query_params.get("refused"):
            await socket.close(1008)
            return
        await socket.accept(subprotocol="realtime" if "realtime" in socket.scope["subprotocols"] else None)
        await socket.send_json({"replica": self.id, "client": socket.client.host})
        while (message := await socket.receive())["type"] == "websocket.receive":
            if message.get("text") == "end":
                await socket.close(4001, "as asked")
                return
            await socket.send(
                {"type": "websocket.send", **{k: message[k] for k in ("text", "bytes") if message.get(k) is not None}}
            )


class Known:
    """A register whose replicas the test writes down; they say something new all the time, but for the one called
    `dead`."""

    def __init__(self, *standings: Standing) -> None:
        self.there, self.beat, self.new = list(standings), 10, False

    async def standings(self):
        self.beat += 1
        if self.new:
            return None
        return [one if one.id == "dead" else replace(one, beat=self.beat) for one in self.there]

    async def secret(self):
        return SECRET


@pytest.fixture(scope="module")
def cluster():
    """A front before two replicas a and b; `known.there` is who is there."""
    a, b = Stub("a"), Stub("b")
    with served(a.app) as (port_a, _), served(b.app) as (port_b, _):
        known = Known(*(standing(s.id, url=f"http://127.0.0.1:{p}") for s, p in ((a, port_a), (b, port_b))))
        front = Front(known, Access(key="key"))
        with served(front) as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client, port, front, known, {"a": a, "b": b}


def test_a_request_arrives_as_it_was_sent_and_says_who_asks(cluster):
    client, *_ = cluster
    headers = {"Host": "example.org", "X-CSM-Client": "9.9.9.9", "X-Forwarded-For": "8.8.8.8"}
    seen = client.post("/csm/some%20thing?a=b%20c", content=b"x" * 100_000, headers=headers).json()
    assert seen["path"] == "/csm/some thing" and seen["query"] == "a=b%20c" and len(seen["body"]) == 100_000
    assert seen["host"] == "example.org"
    assert seen["client"] == "8.8.8.8"  # uvicorn believes a proxy on this machine; never what the client says for ours
    assert client.get("/csm/x", headers={"X-CSM-Client": "9.9.9.9"}).json()["client"] == "127.0.0.1"


def test_a_replica_takes_nothing_from_strangers():
    async def passes(scope, receive, send):
        raise AssertionError("it came in")

    async def asked(client, headers):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/csm/view", "method": "GET", "headers": headers, "client": (client, 1)}
        await Gate(passes, SECRET, "10.0.0.1")(scope, None, send)
        return sent[0]["status"]

    assert asyncio.run(asked("10.0.0.9", [])) == 403
    assert asyncio.run(asked("10.0.0.9", [(b"x-csm-secret", b"guessed")])) == 403
    for client, headers in (("10.0.0.1", []), ("10.0.0.9", [(b"x-csm-secret", SECRET.encode())])):
        with pytest.raises(AssertionError, match="came in"):
            asyncio.run(asked(client, headers))


def test_a_page_gets_a_cookie_and_stays(cluster):
    client, *_ = cluster
    client.cookies.clear()
    own = client.get("/").json()["replica"]
    assert client.cookies[COOKIE] == own
    assert {client.get("/csm/view").json()["replica"] for _ in range(5)} == {own}
    client.cookies.clear()
    assert {client.get("/v1/models").json()["replica"] for _ in range(4)} == {"a", "b"}
    assert COOKIE not in client.cookies


def test_sound_arrives_while_it_is_made(cluster):
    client, *_ = cluster
    began, times = time.perf_counter(), []
    with client.stream("POST", "/v1/audio/speech", json={"input": "x", "every": 0.2}) as answer:
        for _ in answer.iter_raw():
            times.append(time.perf_counter() - began)
    assert len(times) == 3 and times[0] < times[-1] - 0.3


def test_a_listener_who_goes_ends_the_work(cluster):
    client, _, _, _, stubs = cluster
    with client.stream("POST", "/v1/audio/speech", json={"input": "x", "every": 0.05, "parts": 10_000}) as answer:
        next(answer.iter_raw())
    assert any(stubs[id].left.wait(15) for id in ("a", "b"))


@pytest.mark.parametrize("breaks", ["a", "b"])
def test_a_stream_that_broke_off_says_so_and_a_file_is_cut(cluster, breaks):
    client, _, front, *_ = cluster

    def asked_of_both(**more) -> str:
        wait_for(lambda: len(front._balance.ready()) == 2)
        return "".join(
            client.post("/v1/audio/speech", json={"input": "x", "breaks": breaks, **more}).text for _ in range(2)
        )

    text = asked_of_both()
    assert text.count("has ended") == 1 and '"type": "server_error"' in text and text.count("data: 2") == 1
    wait_for(lambda: breaks in front._balance._down)  # the end of the stream is sent before it is noted
    with pytest.raises(httpx.RemoteProtocolError):
        asked_of_both(type="audio/pcm")


def test_what_a_dead_replica_was_asked_is_asked_of_another(cluster):
    client, _, front, known, stubs = cluster
    there = known.there
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = standing("dead", url=f"http://127.0.0.1:{probe.getsockname()[1]}", slots=100)
    known.there = [dead, *there]
    wait_for(lambda: len(front.standings()) == 3)
    answer = client.post("/v1/audio/speech", json={"input": "said again"})
    assert answer.status_code == 200 and answer.text.count("data") == 3
    assert sum("said again" in stub.asked for stub in stubs.values()) == 1
    known.there = [replace(dead, beat=2)]
    wait_for(lambda: len(front.standings()) == 1)
    answer = client.post("/v1/audio/speech", json={"input": "x"})
    assert (
        answer.status_code == 503 and answer.json()["error"]["code"] == "no_replica" and answer.headers["retry-after"]
    )
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
    known.there = there
    wait_for(lambda: client.get("/ready").status_code == 200)


def test_a_register_that_is_started_again_makes_nobody_go(cluster):
    client, _, front, known, _ = cluster
    there, known.there, known.new = known.there, [], True
    beat = known.beat
    wait_for(lambda: known.beat > beat + 2)
    assert client.get("/v1/models").status_code == 200 and len(front.standings()) == 2
    known.there, known.new = there, False


def test_health_figures_and_the_page_know_all_replicas(cluster):
    client, _, front, known, _ = cluster
    there = known.there
    known.there = [*there, standing("c", state=FAILED, trouble="No weights <here>.")]
    wait_for(lambda: len(front.standings()) == 3)
    health = client.get("/health").json()
    assert health["slots"] == 8 and [one["state"] for one in health["replicas"]] == [READY, READY, FAILED]
    assert client.get("/metrics").status_code == 401
    shown = {"headers": {"Authorization": "Bearer key"}}
    figures = client.get("/metrics", **shown).text
    assert 'csm_jobs_total{replica="a"} 2.0' in figures and figures.count("TYPE csm_jobs_total counter") == 1
    assert 'csm_cluster_replicas{state="failed"} 1.0' in figures and "csm_cluster_slots 8.0" in figures
    page = client.get("/cluster", **shown).text
    assert "No weights &lt;here&gt;." in page and "0 of 8 slots" in page
    known.there = there


def test_websockets_pass_both_ways_and_end_as_they_ended(cluster):
    _, port, *_ = cluster
    with connect(f"ws://127.0.0.1:{port}/v1/realtime", subprotocols=["realtime"], proxy=None, max_size=None) as talk:
        assert talk.subprotocol == "realtime" and json.loads(talk.recv())["client"] == "127.0.0.1"
        for sent in ("text", b"bytes", "x" * 2_000_000):
            talk.send(sent)
            assert talk.recv() == sent
        talk.send("end")
        with pytest.raises(ConnectionClosed) as closed:
            talk.recv()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as asked")
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{port}/v1/realtime?refused=1", proxy=None)


def wait_for(true) -> None:
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)


# What all share


def test_a_voice_is_found_from_every_replica_and_its_refusals_arrive():
    register = Register(SECRET)

    def ask(*inputs):
        return register.shelf(*inputs)

    one, other = SharedShelf("nano", ask), SharedShelf("nano", ask)
    voice = Voice("mine", transcript="Hello.", path=None, codes=np.zeros((2, 8), np.int32), codec="nano")
    kept = one.add("me", voice)
    assert other.find("me", kept.id) == kept and list(other.offered("me")) == ["mine", kept.id]
    assert other.find("you", kept.id) is None and SharedShelf("mimi", ask).of("me") == []
    for number in range(MOST_VOICES - 1):
        other.add("me", replace(voice, name=f"voice {number}"))
    with pytest.raises(InputError, match="At most"):
        one.add("me", replace(voice, name="too many"))
    assert other.remove("me", kept.id) and one.find("me", kept.id) is None

    def broken(*inputs):
        raise TimeoutError

    offered = SharedShelf("nano", broken).offered("me")  # those that every replica has are spoken with all the same
    with pytest.raises(InputError, match="can't be reached"):
        offered.get("mine")


def test_a_register_that_began_a_moment_ago_knows_that_it_knows_nothing():
    now = [100.0]
    register = Register(SECRET, clock=lambda: now[0])
    register.tell(standing("a"))
    assert register.standings() is None
    now[0] += 3
    register.tell(standing("b"))
    assert [one.id for one in register.standings()] == ["a", "b"]


def test_a_queue_that_closes_lets_running_jobs_end_and_takes_no_more():
    queue = Queue(1)
    with queue.join(1.0):
        assert not queue.close(0.01)
        with pytest.raises(Closing, match="about to stop"):
            queue.join(1.0)
        threading.Timer(0.1, lambda: None).start()
    assert queue.close(0.0) and queue.closing


def test_two_models_have_two_names_and_one_model_one(generator):
    name = replicas.speaks(generator)
    assert name == replicas.speaks(generator)
    decoder = generator.codec.module.decoder.state_dict()
    for tensor in (next(iter(generator.engine.model.state_dict().values())), decoder["head.weight"]):
        kept = tensor.clone()
        tensor += 1
        try:
            assert replicas.speaks(generator) != name
        finally:
            tensor.copy_(kept)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # uvicorn exits so
@pytest.mark.parametrize("fails", [False, True])
def test_a_server_that_starts_slowly_is_waited_for_and_one_that_fails_is_not(monkeypatch, fails):
    async def app(scope, receive, send):
        await receive()
        await asyncio.sleep(0.2)
        await send({"type": "lifespan.startup.failed" if fails else "lifespan.startup.complete"})
        await receive()

    clock = SimpleNamespace(time=count(step=10).__next__, sleep=time.sleep)  # Gradio's patience ends at once
    monkeypatch.setattr("gradio.http_server.time", clock)
    server = http_server.Server(uvicorn.Config(app, "127.0.0.1", 0, lifespan="on", log_level="critical"))
    with pytest.raises(ServerFailedToStartError) if fails else nullcontext():
        server.run_in_thread()
    assert server.started is not fails
    server.close()
