"""OpenAI's speech API on the app's server, driven by OpenAI's own client."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch
from gradio_client import Client

from csm.config import Environment
from csm.conversation.events import Event, TurnChunk, TurnFinished, TurnReport, Waiting
from csm.conversation.studio import Job, Studio
from csm.conversation.waiting import Queue
from csm.errors import InputError
from csm.speech.voices import shipped_voices
from csm.watermark import detect
from csm.web.encoding import OPEN_END
from csm.web.openai import LONGEST_SPEECH_BODY, SpeechApi
from csm.web.v1.forms import LONGEST_INPUT
from csm.web.v1.orders import VOICE_ALIASES, voice_for
from tests.serving import free_port
from tests.small import small_generator

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")

HELLO = "Good morning! The rain has stopped, and the sun is out again."
LONGER = f"{HELLO} We could walk along the river. Afterwards there is coffee and cake for everybody."


def client_of(url: str, key: str = "none", **options):
    http = httpx.Client(trust_env=False, timeout=120)
    return openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key, max_retries=0, http_client=http, **options)


@pytest.fixture(scope="module")
def client(app):
    return client_of(app.url)


def speech(client, text: str = HELLO, **fields) -> bytes:
    return client.audio.speech.create(**{"model": "tts-1", "voice": "slt", "input": text, **fields}).content


def sound(data: bytes) -> torch.Tensor:
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 24_000
    return torch.from_numpy(wave)


def test_the_models_are_listed_and_found_one_by_one(client):
    names = [model.id for model in client.models.list()]
    assert names[0] == "nano" and "tts-1" in names
    assert client.models.retrieve("nano").owned_by == "csm"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_speech_is_an_mp3_unless_something_else_is_asked_for_and_carries_the_mark(app):
    answer = client_of(app.url).audio.speech.with_raw_response.create(model="tts-1", voice="alloy", input=HELLO)
    assert answer.headers["content-type"] == "audio/mpeg"
    wave = sound(answer.content)
    assert 1.5 < len(wave) / 24_000 < 15 and float(wave.abs().max()) > 0.01
    assert detect(wave).marked


@pytest.mark.parametrize("form", ["opus", "flac", "wav", "pcm"])
def test_every_format_holds_the_same_marked_sound(client, form):
    data = speech(client, response_format=form)
    wave = torch.from_numpy(np.frombuffer(data, "<i2") / np.float32(32_768)) if form == "pcm" else sound(data)
    assert detect(wave).marked
    assert len(wave) == pytest.approx(len(sound(speech(client, response_format="wav"))), abs=2_400)


def test_the_same_request_gives_the_same_sound_and_another_seed_or_voice_another(client):
    first = speech(client, response_format="pcm")
    assert speech(client, response_format="pcm", instructions="Whisper.") == first
    assert speech(client, response_format="pcm", extra_body={"seed": 8}) != first
    assert speech(client, response_format="pcm", voice="rms") != first


def test_openais_voices_are_ours_under_other_names(client):
    assert speech(client, response_format="pcm", voice="nova") == speech(client, response_format="pcm", voice="slt")


def test_sound_arrives_in_parts_and_is_what_arrives_at_once(client):
    asked = {"model": "tts-1", "voice": "slt", "input": LONGER, "response_format": "pcm"}
    with client.audio.speech.with_streaming_response.create(**asked) as answer:
        parts = list(answer.iter_bytes())
    assert len(parts) > 5
    assert b"".join(parts) == speech(client, LONGER, response_format="pcm")


def test_a_wav_is_whole_unless_it_is_asked_to_stream(client):
    whole = speech(client, response_format="wav")
    flowing = speech(client, response_format="wav", stream_format="audio")
    assert whole[40:44] != OPEN_END.to_bytes(4, "little") == flowing[40:44]
    assert whole[44:] == flowing[44:]


@pytest.mark.parametrize("form", ["pcm", "flac"])
def test_events_carry_the_sound_and_end_with_what_was_used(client, form):
    asked = {"model": "tts-1", "voice": "slt", "input": HELLO, "response_format": form, "stream_format": "sse"}
    with client.audio.speech.with_streaming_response.create(**asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == speech(client, response_format=form)
    assert done["type"] == "speech.audio.done"
    used = done["usage"]
    assert used["input_tokens"] > len(HELLO) and used["output_tokens"] > 10
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]


def test_the_voices_and_their_other_names_are_listed(app):
    listed = httpx.get(f"{app.url}v1/audio/voices", trust_env=False).json()
    assert [voice["id"] for voice in listed["voices"]] == list(shipped_voices())
    assert set(listed["aliases"]) == set(VOICE_ALIASES) and set(listed["aliases"].values()) <= set(shipped_voices())


GOOD = {"model": "tts-1", "voice": "slt", "input": HELLO}
BAD = {
    "no input": ({"input": None}, 400, "input", "missing_required_parameter"),
    "input that is no text": ({"input": 7}, 400, "input", "missing_required_parameter"),
    "nothing to say": ({"input": " … "}, 400, "input", "invalid_value"),
    "too much to say": ({"input": "a" * (LONGEST_INPUT + 1)}, 400, "input", "string_above_max_length"),
    "no voice": ({"voice": None}, 400, "voice", "missing_required_parameter"),
    "an unknown voice": ({"voice": "nobody"}, 400, "voice", "invalid_value"),
    "a path for a voice": ({"voice": "/etc/hostname"}, 400, "voice", "invalid_value"),
    "an unknown model": ({"model": "banana-9"}, 404, "model", "model_not_found"),
    "a model that is no name": ({"model": ["tts-1"]}, 404, "model", "model_not_found"),
    "an unknown format": ({"response_format": "au"}, 400, "response_format", "invalid_value"),
    "a speed too high": ({"speed": 4.5}, 400, "speed", "invalid_value"),
    "a speed that is no number": ({"speed": "fast"}, 400, "speed", "invalid_value"),
    "an unknown stream": ({"stream_format": "rtp"}, 400, "stream_format", "invalid_value"),
    "a negative seed": ({"seed": -1}, 400, "seed", "invalid_value"),
    "a word for a temperature": ({"temperature": "hot"}, 400, "temperature", "invalid_value"),
    "top-k of 0": ({"top_k": 0}, 400, "top_k", "invalid_value"),
    "a min-p above 1": ({"min_p": 1.5}, 400, "min_p", "invalid_value"),
}


@pytest.mark.parametrize("changed, status, param, code", BAD.values(), ids=BAD)
def test_a_bad_request_is_refused_in_openais_shape(app, changed, status, param, code):
    answer = httpx.post(f"{app.url}v1/audio/speech", json=GOOD | changed, trust_env=False, timeout=60)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert len(error["message"]) < 300 and "\n" not in error["message"] and "Traceback" not in error["message"]


@pytest.mark.parametrize(
    "body, status", [(b"{", 400), (b"[1]", 400), (b"", 400), (b'"' + b"a" * LONGEST_SPEECH_BODY, 413)]
)
def test_a_body_that_is_no_request_is_refused(app, body, status):
    answer = httpx.post(f"{app.url}v1/audio/speech", content=body, trust_env=False, timeout=60)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_the_client_raises_what_it_raises_for_openai(client):
    with pytest.raises(openai.BadRequestError, match="from 0.25 to 4") as caught:
        speech(client, speed=5.0)
    assert caught.value.param == "speed"


def test_the_page_s_functions_and_programs_at_once_get_each_their_own(app, client):
    page = Client(app.url, verbose=False)
    alone = speech(client, response_format="pcm"), speech(client, LONGER, response_format="pcm")
    with ThreadPoolExecutor() as pool:
        conversation = pool.submit(page.predict, script="A: Hi.\nB: Hello.", api_name="/generate")
        first = pool.submit(speech, client, HELLO, response_format="pcm")
        second = pool.submit(speech, client, LONGER, response_format="pcm")
        for one, own in zip((first.result(), second.result()), alone):  # in one batch: as alone but for rounding
            told, expected = (np.frombuffer(data, "<i2").astype(float) for data in (one, own))
            assert np.linalg.norm(told - expected) < 0.03 * np.linalg.norm(expected)
        assert conversation.result()[1]["audio_seconds"] > 0


# Below, the routes alone, over a small model or none, on a server in this process.


@pytest.fixture
def serve():
    """Serve a `SpeechApi` on a free port; gives its address."""
    import uvicorn
    from starlette.applications import Starlette

    running = []

    def start(read, key: str | None = None, generator=None) -> str:
        port = free_port()
        api = SpeechApi(generator or small_generator(), read, key)
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=api.routes()), port=port, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)


def second_of_noise() -> TurnChunk:
    return TurnChunk(0, 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(0)))


def one_second(job: Job) -> Iterator[Event]:
    yield second_of_noise()


def test_sound_that_may_have_gone_wrong_says_so_in_a_header_and_in_the_last_event(serve):
    def doubtful(job: Job) -> Iterator[Event]:
        yield (chunk := second_of_noise())
        told = TurnReport("Reader", "Hi.", 0.0, 1.0, 12, "ended", 9, doubt="it is too long")
        yield TurnFinished(0, 1, told, chunk.audio, job.session.turns[0])

    url = f"{serve(doubtful)}/v1/audio/speech"
    asked = {"voice": "slt", "input": "Good morning.", "response_format": "flac"}
    whole = httpx.post(url, json=asked, trust_env=False, timeout=60)
    events = httpx.post(url, json={**asked, "stream_format": "sse"}, trust_env=False, timeout=60).text
    assert whole.headers["x-csm-doubt"] == "it is too long"
    assert json.loads(events.strip().rpartition("data: ")[2])["doubt"] == "it is too long"


def test_it_is_listened_to_where_somebody_can_be_told_what_was_heard(serve):
    judged = []

    def noting(job: Job) -> Iterator[Event]:
        judged.append(job.judged)
        yield second_of_noise()

    url = f"{serve(noting)}/v1/audio/speech"
    for form in ({"response_format": "pcm"}, {"response_format": "flac"}, {"stream_format": "sse"}):
        asked = {"voice": "slt", "input": "Good morning."} | form
        assert httpx.post(url, json=asked, trust_env=False, timeout=60).status_code == 200
    assert judged == [False, True, True]


def test_sound_arrives_while_the_rest_is_made(serve):
    """The rest is not made until the client has the beginning."""
    arrived, in_time = threading.Event(), []

    def waits(job: Job) -> Iterator[Event]:
        yield second_of_noise()
        in_time.append(arrived.wait(30))
        yield second_of_noise()

    asked = {"model": "tts-1", "voice": "slt", "input": "Hello.", "response_format": "pcm"}
    received = 0
    with client_of(serve(waits)).audio.speech.with_streaming_response.create(**asked) as answer:
        for part in answer.iter_bytes():
            received += len(part)
            arrived.set()
    assert in_time == [True] and received == 96_000


def test_with_a_key_only_those_who_have_it_are_served_and_it_is_never_shown(serve, caplog):
    url = serve(one_second, key="open-sesame")
    assert len(speech(client_of(url, "open-sesame"), response_format="pcm")) == 48_000
    for wrong in ("none", "open-sesam", "open-sesame2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            speech(client_of(url, wrong))
        assert caught.value.code == "invalid_api_key"
    assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
    assert "open-sesame" not in repr(SpeechApi(small_generator(), one_second, "open-sesame")) + caplog.text


def test_the_key_comes_from_the_environment_and_is_not_in_its_representation(monkeypatch):
    monkeypatch.setenv("CSM_API_KEY", "open-sesame")
    assert Environment.read().api_key == "open-sesame" and "sesame" not in repr(Environment.read())
    monkeypatch.delenv("CSM_API_KEY")
    assert Environment.read().api_key is None


def test_a_full_queue_is_told_with_the_time_to_come_again(serve):
    queue = Queue(longest=1)
    place = queue.join(30.0)
    url = serve(Studio(small_generator(max_positions=400), queue=queue).perform)
    with pytest.raises(openai.InternalServerError, match="try again in") as caught:
        speech(client_of(url))
    assert caught.value.status_code == 503 and caught.value.code == "server_overloaded"
    assert 10 < int(caught.value.response.headers["retry-after"]) <= 30  # less by what the request took
    place.leave()
    assert len(speech(client_of(url), response_format="pcm")) > 10_000


@pytest.mark.parametrize("read_before", [0, 1])
def test_when_the_client_goes_the_speaking_ends_and_nothing_is_left_behind(serve, read_before):
    jobs, ended = [], threading.Event()

    def endless(job: Job) -> Iterator[Event]:
        jobs.append(job)
        try:
            while not job.stopped():
                time.sleep(0.05)
                yield second_of_noise() if read_before else Waiting(1, 1.0)
        finally:
            ended.set()

    url = serve(endless)
    with httpx.Client(trust_env=False, timeout=httpx.Timeout(30, read=30 if read_before else 3)) as http:
        try:
            with http.stream("POST", f"{url}/v1/audio/speech", json=GOOD | {"response_format": "pcm"}) as answer:
                next(answer.iter_bytes())
        except httpx.ReadTimeout:
            assert not read_before
    assert ended.wait(30)
    folder: Path = jobs[0].folder
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()


def test_a_failure_of_the_program_is_told_without_its_insides(serve):
    def broken(job: Job) -> Iterator[Event]:
        raise ZeroDivisionError("secret insides")
        yield

    with pytest.raises(openai.InternalServerError, match="Something went wrong") as caught:
        speech(client_of(serve(broken)))
    assert caught.value.status_code == 500 and "insides" not in str(caught.value.body)


def test_what_is_refused_after_the_first_sound_ends_the_events_with_an_error(serve):
    def fails(job: Job) -> Iterator[Event]:
        yield second_of_noise()
        raise InputError("The rest no longer fits.")

    asked = {**GOOD, "response_format": "pcm", "stream_format": "sse"}
    answer = httpx.post(f"{serve(fails)}/v1/audio/speech", json=asked, trust_env=False)
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert [*events[-1]] == ["error"] and events[-1]["error"]["message"] == "The rest no longer fits."


def test_every_name_of_openais_has_a_voice_even_where_the_shipped_ones_are_others():
    other = {name: shipped_voices()["slt"] for name in ("anna", "ben")}
    for offered in (shipped_voices(), other):
        assert all(voice_for(alias, offered) for alias in VOICE_ALIASES)
        assert voice_for("nobody", offered) is None
    assert voice_for("SLT", shipped_voices()) == shipped_voices()["slt"]
    women = {alias for alias in VOICE_ALIASES if "woman" in voice_for(alias, shipped_voices()).description}
    assert women == {"alloy", "coral", "marin", "nova", "sage", "shimmer"}
