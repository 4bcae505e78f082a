"""What programs ask of `/v1` beyond OpenAI's own: voices of their own, dialogues, text that streams in, papers."""

import base64
import json
import threading
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from csm.config import SAMPLE_RATE, Environment
from csm.conversation.events import Waiting
from csm.conversation.studio import Studio
from csm.conversation.waiting import Queue
from csm.speech.voices import Voice, shipped_voices
from csm.web import watching
from csm.web.access import Access
from csm.web.doors import Doors
from csm.web.openai import SpeechApi
from csm.web.v1.arriving import TextStream
from csm.web.v1.errors import leftovers
from csm.web.v1.papers import DOORS, openapi
from csm.web.v1.shelf import MOST_VOICES, VOICE_SECONDS, Shelf
from csm.web.watching import Metrics, Watched, route_of, write_log
from tests.small import end_after, small_generator

SLT = shipped_voices()["slt"]
ASKED = {"voice": "slt", "input": "Hi there.", "response_format": "pcm"}
TALK = {
    "input": [{"speaker": "A", "text": "Good morning."}, {"speaker": "B", "text": "Hello."}],
    "voices": {"A": "slt"},
}
FRAMES = 3


@pytest.fixture(scope="module")
def studio():
    generator = small_generator(max_positions=1_200)
    end_after(generator, FRAMES)
    return Studio(generator)


@pytest.fixture(scope="module")
def client(studio):
    routes = SpeechApi(studio.generator, studio.perform).routes()
    return TestClient(Starlette(routes=[*routes, leftovers(routes)]))


def refusal(answer, status=400):
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


def events(answer):
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]


def brought(client, key="mine", **more):
    form = {"name": "Anna", "ref_text": SLT.transcript, "consent": "Anna agreed in writing.", **more}
    files = {"audio_sample": ("anna.wav", SLT.path.read_bytes(), "audio/wav")}
    return client.post("/v1/audio/voices", data=form, files=files, headers=bearer(key))


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


# What clients send


def test_a_dated_model_of_openais_speaks_and_a_warning_says_which_one_did(client):
    answer = client.post("/v1/audio/speech", json=ASKED | {"model": "gpt-4o-mini-tts-2025-12-15"})
    assert answer.status_code == 200 and "the model that is loaded spoke" in answer.headers["warning"]
    assert "warning" not in client.post("/v1/audio/speech", json=ASKED | {"model": "tts-1"}).headers
    assert refusal(client.post("/v1/audio/speech", json=ASKED | {"model": "banana"}), 404)["param"] == "model"


def test_what_this_model_does_not_know_is_ignored(client):
    extras = {"instructions": "Whisper.", "lang_code": "a", "volume_multiplier": 2, "normalization_options": {"x": 1}}
    plain = client.post("/v1/audio/speech", json=ASKED).content
    assert client.post("/v1/audio/speech", json=ASKED | extras).content == plain
    assert client.post("/v1/audio/speech", json=ASKED | {"voice": {"id": "SLT"}}).content == plain


def test_speech_at_twice_the_speed_is_half_as_long(client):
    plain, fast = (client.post("/v1/audio/speech", json=ASKED | {"speed": speed}).content for speed in (1, 2))
    assert len(plain) == 2 * FRAMES * 1_920 and len(fast) == len(plain) / 2


def test_models_are_listed_where_each_client_looks_for_them(client):
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert [model["id"] for model in client.get("/v1/audio/models").json()["models"]] == names


def test_open_webui_finds_models_and_voices_and_gets_an_mp3_for_what_it_sends(client):
    """As `routers/audio.py` of open-webui asks: lists without a key, then a text with who asks in the headers."""
    assert {model["id"] for model in client.get("/v1/audio/models").json()["models"]} >= {"tts-1", "tts-1-hd"}
    assert {voice["id"]: voice["name"] for voice in client.get("/v1/audio/voices").json()["voices"]}["slt"] == "slt"
    headers = bearer("any") | {"X-OpenWebUI-User-Name": "Anna", "X-OpenWebUI-User-Role": "user"}
    asked = {"model": "tts-1", "voice": "alloy", "input": "Hi there.", "split_on": "punctuation"}
    answer = client.post("/v1/audio/speech", json=asked, headers=headers)
    assert answer.headers["content-type"] == "audio/mpeg" and len(answer.content) > 500


@pytest.mark.parametrize("form", ["mp3", "opus"])
def test_home_assistant_s_integration_gets_what_it_sends_for(client, form):
    """As `openaitts_engine.py` of sfortis/openai_tts asks, with the extras that its users merge in."""
    asked = {"model": "tts-1", "input": "Hi there.", "voice": "nova", "response_format": form, "speed": 1.0}
    asked |= {"instructions": "Be calm.", "chunk_size": 400}
    answer = client.post("/v1/audio/speech", json=asked, headers={"User-Agent": "HomeAssistant-OpenAI-TTS"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("audio/")


@pytest.mark.parametrize("method, path, status", [("GET", "/v1/audio/speech", 405), ("POST", "/v1/nothing", 404)])
def test_what_is_no_route_is_refused_in_openais_shape(client, method, path, status):
    assert refusal(client.request(method, path), status)["code"] in ("not_found", "method_not_allowed")


# Voices


def test_a_voice_of_one_s_own_speaks_by_its_id_and_its_name_for_its_owner_alone(client):
    kept = brought(client).json()
    assert kept["own"] and kept["expires_at"] - kept["created_at"] == VOICE_SECONDS
    mine = client.get("/v1/audio/voices", headers=bearer("mine")).json()["voices"]
    assert kept["id"] in [voice["id"] for voice in mine]
    for name in (kept["id"], {"id": kept["id"]}, "anna"):
        asked = ASKED | {"voice": name}
        assert client.post("/v1/audio/speech", json=asked, headers=bearer("mine")).status_code == 200
        assert refusal(client.post("/v1/audio/speech", json=asked, headers=bearer("other")))["param"] == "voice"
    place = f"/v1/audio/voices/{kept['id']}"
    assert kept["id"] not in client.get("/v1/audio/voices", headers=bearer("other")).text
    assert refusal(client.delete(place, headers=bearer("other")), 404)["code"] == "voice_not_found"
    assert client.delete(place, headers=bearer("mine")).json()["deleted"]
    assert client.get(place, headers=bearer("mine")).status_code == 404


def test_a_voice_that_was_brought_sounds_like_the_same_one_shipped(client):
    kept = brought(client, "again").json()
    answers = [
        client.post("/v1/audio/speech", json=ASKED | {"voice": voice}, headers=bearer("again")).content
        for voice in ("slt", kept["id"])
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "changed, param, code",
    [
        ({"consent": "no"}, "consent", "consent_missing"),
        ({"consent": ""}, "consent", "consent_missing"),
        ({"name": "slt"}, "name", "invalid_value"),
        ({"name": "../x"}, "name", "invalid_value"),
        ({"ref_text": " "}, "ref_text", "missing_required_parameter"),
    ],
)
def test_a_voice_that_can_not_be_kept_is_refused_at_its_field(client, changed, param, code):
    error = refusal(brought(client, "bad", **changed))
    assert (error["param"], error["code"]) == (param, code)


def test_what_is_no_recording_is_refused_without_showing_a_path(client):
    form = {"name": "Anna", "ref_text": "Hi.", "consent": "yes"}
    answer = client.post("/v1/audio/voices", data=form, files={"audio_sample": ("a.wav", b"junk", "audio/wav")})
    assert refusal(answer)["param"] == "audio_sample" and "/" not in answer.json()["error"]["message"]
    assert refusal(client.post("/v1/audio/voices", json=form))["code"] == "invalid_body"
    assert refusal(client.post("/v1/audio/voices", data=form, files={"other": b""}))["param"] == "audio_sample"


def test_a_recording_can_come_with_the_request(client):
    sample = base64.b64encode(SLT.path.read_bytes()).decode()
    asked = {"input": ASKED["input"], "response_format": "pcm", "ref_text": SLT.transcript}
    spoken = client.post("/v1/audio/speech", json=asked | {"ref_audio": f"data:audio/wav;base64,{sample}"})
    assert spoken.status_code == 200 and spoken.content == client.post("/v1/audio/speech", json=ASKED).content
    for bad in ("https://example.org/a.wav", "file:///etc/hostname", base64.b64encode(b"junk").decode(), ""):
        assert refusal(client.post("/v1/audio/speech", json=asked | {"ref_audio": bad}))["param"] == "ref_audio"
    answer = client.post("/v1/audio/speech", json={"input": "Hi.", "ref_audio": sample})
    assert refusal(answer)["param"] == "ref_text"


def encoded(name, codec="c"):
    import numpy as np

    return Voice(name, SLT.path, "Hi.", codes=np.ones((3, 4), np.int32), codec=codec)


def test_voices_are_forgotten_after_a_day_unless_the_host_keeps_them(tmp_path):
    now = [0.0]
    brief, lasting = Shelf("c", clock=lambda: now[0]), Shelf("c", tmp_path / "voices", lambda: now[0])
    kept = lasting.add("one", encoded("Anna"))
    brief.add("one", encoded("Anna"))
    now[0] += VOICE_SECONDS + 1
    assert not brief.of("one") and kept.expires is None
    again = Shelf("c", tmp_path / "voices")
    assert [voice.id for voice in again.of("one")] == [kept.id] and not again.of("other")
    assert again.of("one")[0].voice.codes.tolist() == kept.voice.codes.tolist()
    assert not Shelf("another codec", tmp_path / "voices").of("one")
    assert again.remove("one", kept.id) and not Shelf("c", tmp_path / "voices").of("one")


def test_one_owner_keeps_so_many_voices_and_no_more():
    shelf = Shelf("c")
    for number in range(MOST_VOICES):
        shelf.add("one", encoded(f"Anna {number}"))
    with pytest.raises(ValueError, match="delete one"):
        shelf.add("one", encoded("Ben"))
    shelf.add("other", encoded("Ben"))


# Dialogues


def test_a_dialogue_comes_with_its_sound_subtitles_and_report(client):
    answer = client.post("/v1/audio/dialogue", json=TALK | {"response_format": "wav"}).json()
    data = base64.b64decode(answer["audio"])
    turns = answer["report"]["turns"]
    assert [turn["speaker"] for turn in turns] == ["A", "B"] and answer["format"] == "wav"
    assert (len(data) - 44) / 2 == turns[-1]["end"] * SAMPLE_RATE
    assert answer["subtitles"]["srt"].count("-->") == 2 and "<v B>Hello." in answer["subtitles"]["vtt"]


def test_a_script_is_a_dialogue_too(client):
    listed = client.post("/v1/audio/dialogue", json=TALK | {"response_format": "pcm"}).json()
    written = TALK | {"input": "A: Good morning.\nB: Hello.", "response_format": "pcm"}
    assert client.post("/v1/audio/dialogue", json=written).json()["audio"] == listed["audio"]


def test_a_dialogue_streams_as_speech_does_and_its_times_are_those_of_what_was_sent(client):
    asked = TALK | {"response_format": "pcm", "speed": 2}
    sound = client.post("/v1/audio/dialogue", json=asked | {"stream_format": "audio"}).content
    *deltas, done = events(client.post("/v1/audio/dialogue", json=asked | {"stream_format": "sse"}))
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == sound
    assert done["segments"][-1]["end"] == done["report"]["turns"][-1]["end"] == len(sound) / 2 / SAMPLE_RATE
    assert done["subtitles"]["srt"].count("-->") == 2 and done["usage"]["output_tokens"] == 2 * FRAMES


@pytest.mark.parametrize(
    "changed, param",
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"speaker": "A", "text": "Hi."}, {"speaker": "B"}]}, "input[1].text"),
        ({"input": [{"speaker": "A", "text": "…"}], "voices": {}}, "input[0].text"),
        ({"input": [{"speaker": f"S{n}", "text": "Hi."} for n in range(9)], "voices": {}}, "input"),
        ({"input": [{"speaker": "A", "text": "word " * 3_999}] * 11, "voices": {}}, "input"),
        ({"input": [{"speaker": "A", "text": "I"}] * 300, "voices": {}}, "input"),  # minutes without a sound
        ({"voices": {"C": "slt"}}, "voices.C"),
        ({"voices": {"A": "nobody"}}, "voices.A"),
        ({"voices": {"A": 3}}, "voices.A"),
        ({"timestamp_granularities": ["letter"]}, "timestamp_granularities[0]"),
    ],
)
def test_a_dialogue_that_can_not_be_spoken_is_refused_at_its_field(client, changed, param):
    assert refusal(client.post("/v1/audio/dialogue", json=TALK | changed))["param"] == param


def test_times_of_turns_come_with_events_and_have_no_place_in_a_file(client):
    asked = ASKED | {"timestamp_granularities": ["segment"]}
    assert refusal(client.post("/v1/audio/speech", json=asked))["param"] == "timestamp_granularities"
    *_, done = events(client.post("/v1/audio/speech", json=asked | {"stream_format": "sse"}))
    assert done["segments"] == [{"speaker": "Reader", "text": "Hi there.", "start": 0.0, "end": 0.08 * FRAMES}]


def test_times_of_words_lie_in_their_turns_and_stand_in_the_report_or_the_last_event(client):
    asked = TALK | {"timestamp_granularities": ["word"], "response_format": "pcm"}
    report = client.post("/v1/audio/dialogue", json=asked).json()["report"]
    *_, done = events(client.post("/v1/audio/dialogue", json=asked | {"stream_format": "sse"}))
    for words, turns in ((report["words"], report["turns"]), (done["words"], done["segments"])):
        assert [(word["word"], word["turn"]) for word in words] == [("Good", 0), ("morning.", 0), ("Hello.", 1)]
        for word in words:
            turn = turns[word["turn"]]
            assert turn["start"] <= word["start"] <= word["end"] <= turn["end"]


# Text that streams in


def streamed(socket, pieces, **opening):
    socket.send_json({"type": "session.config", "voice": "slt", **opening})
    for piece in pieces:
        socket.send_json({"type": "input.text", "text": piece})
    socket.send_json({"type": "input.done"})
    return received(socket)


def received(socket, last="session.done"):
    messages, sound = [], b""
    while not messages or messages[-1]["type"] not in (last, "error"):
        message = socket.receive()
        if message.get("bytes"):
            sound += message["bytes"]
        else:
            messages.append(json.loads(message["text"]))
    return messages, sound


def test_text_that_streams_in_is_spoken_clause_by_clause(client):
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        messages, sound = streamed(socket, ["Good mor", "ning! And how are ", "you? Fi", "ne"])
    kinds = [message["type"] for message in messages]
    assert kinds == ["audio.start", "audio.done"] * 3 + ["session.done"]
    said = [message["sentence_text"] for message in messages if message["type"] == "audio.start"]
    assert said == ["Good morning!", "And how are you?", "Fine"]
    assert len(sound) / 2 == 3 * FRAMES * 1_920 == messages[-2]["end"] * SAMPLE_RATE
    assert messages[-1]["usage"]["output_tokens"] == 3 * FRAMES


def test_the_first_clause_is_heard_before_the_next_is_written(client):
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        socket.send_json({"type": "session.config", "voice": "slt"})
        socket.send_json({"type": "input.text", "text": "Good morning! And"})
        messages, sound = received(socket, "audio.done")
        assert messages[0]["sentence_text"] == "Good morning!" and len(sound) == 2 * FRAMES * 1_920
        socket.send_json({"type": "input.done"})
        assert received(socket)[0][-1]["total_sentences"] == 2


def test_what_streams_as_mp3_is_one_file(client, tmp_path):
    import soundfile

    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        _, sound = streamed(socket, ["One sentence. Another one."], response_format="mp3", speed=0.5)
    (tmp_path / "a.mp3").write_bytes(sound)
    assert soundfile.info(tmp_path / "a.mp3").duration == pytest.approx(2 * 2 * FRAMES * 0.08, abs=0.15)


@pytest.mark.parametrize(
    "messages, param",
    [
        ([{"type": "input.text", "text": "Hi."}], "type"),
        ([{"type": "session.config"}], "voice"),
        ([{"type": "session.config", "voice": "slt", "response_format": "flac"}], "response_format"),
        ([{"type": "session.config", "voice": "slt"}, {"type": "input.text"}], "text"),
        ([{"type": "session.config", "voice": "slt"}, {"type": "dance"}], "type"),
        ([["no", "object"]], None),
    ],
)
def test_a_stream_that_can_not_go_on_ends_with_openais_error(client, messages, param):
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        for message in messages:
            socket.send_json(message)
        (*_, last), _ = received(socket)
        assert last["type"] == "error" and last["error"]["param"] == param
        assert socket.receive()["type"] == "websocket.close"


def test_a_stream_asks_for_the_key_and_minds_silence(studio):
    api = SpeechApi(studio.generator, studio.perform, "open-sesame")
    client = TestClient(Starlette(routes=api.routes()))
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        assert received(socket)[0][-1]["error"]["code"] == "invalid_api_key"
    silent = TextStream(studio.generator, studio.perform, Shelf("c"), silent_seconds=0.01)
    with TestClient(Starlette(routes=[_socket(silent)])).websocket_connect("/") as socket:
        assert received(socket)[0][-1]["error"]["code"] == "silent"


def _socket(stream):
    from starlette.routing import WebSocketRoute

    return WebSocketRoute("/", stream.serve)


def test_a_client_that_goes_ends_its_clause(studio):
    jobs, ended = [], threading.Event()

    def endless(job):
        jobs.append(job)
        try:
            while not job.stopped():
                ended.wait(0.01)
                yield Waiting(1, 1.0)
        finally:
            ended.set()

    client = TestClient(Starlette(routes=SpeechApi(studio.generator, endless).routes()))
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        socket.send_json({"type": "session.config", "voice": "slt"})
        socket.send_json({"type": "input.text", "text": "Good morning! And"})
        assert socket.receive_json()["type"] == "audio.start"
    assert (ended.wait(60) and jobs[0].stopped()) or not jobs[0].folder.exists()


# Papers and figures


def test_every_route_is_in_the_papers_with_what_it_takes_and_gives(client):
    routes = {
        (method.lower(), route.path.replace(":path", ""))
        for route in SpeechApi(small_generator(), lambda job: iter(())).routes()
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and route.path.startswith("/v1") and not route.path.endswith("/schema")
    }
    assert routes == {(door.method, door.path) for door in DOORS if door.path.startswith("/v1")}
    told = client.get("/openapi.json").json()
    assert told == json.loads(json.dumps(openapi()))
    speech = told["components"]["schemas"]["Speech"]["properties"]
    assert {"input", "voice", "speed", "seed", "ref_audio", "stream_format"} <= set(speech)
    used = set(_references(told))
    assert used <= {f"#/components/schemas/{name}" for name in told["components"]["schemas"]}


def _references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        for one in value.values():
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def test_the_page_to_try_them_asks_no_other_site(client):
    page = client.get("/docs").text
    assert "openapi.json" in page and "http" not in page.replace("http-equiv", "")


@pytest.fixture
def watched(studio):
    measured = Studio(studio.generator, queue=Queue(1))
    metrics = Metrics(measured)
    measured.watch = metrics.watched
    routes = [*SpeechApi(measured.generator, measured.perform).routes(), *metrics.routes()]
    return TestClient(Watched(Doors(Starlette(routes=routes), Access(frozenset("*"), key="open-sesame")), metrics))


def test_health_needs_no_key_and_figures_do(watched):
    health = watched.get("/health").json()
    assert health == {"status": "ok", "model": "small", "device": "cpu", "slots": 1, "speaking": 0, "waiting": 0}
    assert watched.get("/metrics").status_code == 401


def test_what_was_spoken_is_counted(watched):
    assert watched.post("/v1/audio/speech", json=ASKED, headers=bearer("open-sesame")).status_code == 200
    assert watched.post("/v1/audio/speech", json=ASKED).status_code == 401
    lines = watched.get("/metrics", headers=bearer("open-sesame")).text.splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    speech = 'csm_requests_total{method="POST",route="/v1/audio/speech",status="%s"}'
    assert figures[speech % 200] == figures[speech % 401] == "1.0"
    assert figures['csm_jobs_total{outcome="done"}'] == figures["csm_first_sound_seconds_count"] == "1.0"
    assert float(figures["csm_sound_seconds_total"]) == pytest.approx(FRAMES * 0.08)
    assert figures["csm_real_time_factor_count"] == "1.0" and figures["csm_slots"] == "1.0"


def test_every_job_is_a_span_of_the_trace_of_its_request(watched, monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace")

    class Span(trace.NonRecordingSpan):
        def set_attributes(self, attributes):
            said.update(attributes)

        def end(self, end_time=None):
            said["ended"] = True

    class Tracer(trace.NoOpTracer):
        def start_span(self, name, context=None, **more):
            said.update(more["attributes"], name=name, trace=trace.get_current_span().get_span_context().trace_id)
            return Span(trace.INVALID_SPAN_CONTEXT)

    said = {}
    monkeypatch.setattr(trace, "get_tracer", lambda *_: Tracer())
    asking = trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1))
    asked = watched.app

    async def traced(scope, receive, send):  # as FastAPI does, which is not in this app
        with trace.use_span(trace.NonRecordingSpan(asking)):
            await asked(scope, receive, send)

    answer = TestClient(traced).post("/v1/audio/speech", json=ASKED, headers=bearer("open-sesame"))
    assert answer.status_code == 200 and said.pop("csm.queue_seconds") < said.pop("csm.first_sound_seconds")
    assert said.pop("csm.sound_seconds") == pytest.approx(FRAMES * 0.08)
    assert said == {"name": "csm.job", "csm.turns": 1, "csm.outcome": "done", "trace": 7, "ended": True}


def test_the_log_has_a_line_for_each_request_and_neither_texts_nor_names_of_pages(watched, tmp_path):
    place = tmp_path / "access.log"
    before = list(watching.log.handlers)
    write_log(str(place))
    try:
        watched.post("/v1/audio/speech?x=secret", json=ASKED, headers=bearer("open-sesame"))
        watched.get("/csm/whole/0123456789abcdef/1")
    finally:
        for handler in set(watching.log.handlers) - set(before):
            watching.log.removeHandler(handler)
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert [line["route"] for line in lines] == ["/v1/audio/speech", "/csm/whole/…"]
    assert lines[0]["status"] == 200 and lines[0]["bytes"] == 2 * FRAMES * 1_920
    assert not any(word in place.read_text() for word in ("Hi there", "secret", "0123456789abcdef", "open-sesame"))


def test_a_path_is_told_without_what_it_names():
    assert route_of("/v1/audio/voices/voice_1") == "/v1/audio/voices/…" and route_of("/nobody/knows") == "other"


def test_a_browser_of_a_listed_site_may_ask_with_the_headers_that_openais_client_sends():
    access = replace(Access(), origins=frozenset(["https://site.example"]), key="open-sesame")
    client = TestClient(Doors(Starlette(), access), base_url="http://localhost")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    answer = client.options("/v1/audio/speech", headers={"Origin": "https://site.example", **asked})
    assert answer.status_code == 204 and "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert client.options("/v1/audio/speech", headers={"Origin": "https://evil.example", **asked}).status_code == 403


def test_where_voices_and_the_log_are_kept_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("CSM_VOICES", "/voices")
    monkeypatch.setenv("CSM_ACCESS_LOG", "-")
    assert (Environment.read().voices, Environment.read().access_log) == ("/voices", "-")
