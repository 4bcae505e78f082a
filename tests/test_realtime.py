"""The Realtime API: OpenAI's own client talks with it, and what is wrong is told while the talk goes on."""

import asyncio
import base64
import json
import threading
import time

import numpy as np
import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.speech.batching import shared
from csm.speech.voices import shipped_voices
from csm.talk.language import Call, ChatModel, Prompt
from csm.watermark import detect
from csm.web.access import Access
from csm.web.doors import Doors
from csm.web.realtime import Talks
from csm.web.wire import LONGEST_MESSAGE, read_options
from tests.small import end_after, small_generator
from tests.talking import MANUAL, Script, ScriptedEars, as_audio, loud, quiet

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
uvicorn = pytest.importorskip("uvicorn")
connect = pytest.importorskip("websockets.asyncio.client").connect

KEY = "a key of ours"
QUESTION = np.concatenate([loud(0.6), quiet(0.8)])


class Words(Script):
    """Answers with what it was told last, and calls a function where it has one."""

    async def answer(self, prompt):
        self.asked.append(prompt)
        said = prompt.messages[-1]
        if prompt.tools and said["role"] != "tool":
            yield Call("call_7", prompt.tools[0]["function"]["name"], '{"zone": "Paris"}')
        else:
            yield f"You said: {said['content']}"


async def chat(request: Request) -> Response:
    """A chat API that goes wrong in the way that its address names."""
    way = request.path_params["way"]
    if way.isdigit():
        return Response("no", int(way))
    if way == "garbage":
        return Response("<html>Welcome!</html>")
    body = await request.json()
    if way == "key" and request.headers.get("authorization") != "Bearer secret":
        return Response("no", 401)

    async def lines():
        yield b": a comment\n\n"
        if way == "broken":
            yield b"data: {not json\n\n"
        parts = [{"content": "Hello "}, {"content": body["model"]}]
        if body.get("tools"):
            parts = [
                {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "clock", "arguments": '{"a"'}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
            ]
        for part in parts:
            yield f"data: {json.dumps({'choices': [{'delta': part}]})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def talks():
    generator = small_generator(max_positions=600)
    end_after(generator, 8)
    return Talks(Studio(shared(generator, 4), 4), ScriptedEars(), {"words": Words([])})


@pytest.fixture(scope="module")
def port(talks):
    inner = Starlette(routes=[*talks.routes(), Route("/{way}/chat/completions", chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(inner, port=0, log_level="error"))
    guarded = uvicorn.Server(uvicorn.Config(Doors(inner, Access(key=KEY)), port=0, log_level="error", lifespan="off"))
    threads = [threading.Thread(target=one.run, daemon=True) for one in (server, guarded)]
    for thread in threads:
        thread.start()
    while not (server.started and guarded.started):
        threads[0].join(0.01)
    yield [one.servers[0].sockets[0].getsockname()[1] for one in (server, guarded)]
    server.should_exit = guarded.should_exit = True
    for thread in threads:
        thread.join(10)


def talked(port, work, detection=None, **session):
    """What `work` returns, given a connection of OpenAI's client on which a session was agreed."""

    async def run():
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port[0]}/v1", api_key="none")
        async with client.realtime.connect(model="gpt-realtime") as connection:
            assert (await connection.recv()).type == "session.created"
            audio = {"input": {"turn_detection": detection}, "output": {"voice": "marin"}}
            await connection.session.update(session={"type": "realtime", "audio": audio, **session})
            assert (await until(connection, "session.updated"))[-1].session.audio.output.voice == "clb"
            return await work(connection)

    return asyncio.run(asyncio.wait_for(run(), 120))


async def until(connection, *kinds):
    """Events up to the first of one of these kinds."""
    events = []
    while not events or events[-1].type not in kinds:
        events.append(await connection.recv())
    return events


def test_a_spoken_question_is_answered_with_marked_sound(port):
    async def work(connection):
        await connection.input_audio_buffer.append(audio=as_audio(QUESTION))
        return await until(connection, "response.done")

    events = talked(port, work, {"type": "server_vad"}, instructions="Be brief.")
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    response = events[-1].response
    assert response.status == "completed" and response.output[0].content[0].transcript.startswith("You said: What is")
    raw = b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
    wave = torch.from_numpy(np.frombuffer(raw, "<i2").astype(np.float32) / 32_768)
    assert len(wave) == 1_920 * response.usage.output_tokens and detect(wave).confidence > 0


def test_text_goes_in_and_comes_out(port):
    async def work(connection):
        content = [{"type": "input_text", "text": "Good morning."}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create(response={"output_modalities": ["text"]})
        return await until(connection, "response.done")

    events = talked(port, work)
    assert [event.text for event in events if event.type == "response.output_text.done"] == ["You said: Good morning."]
    assert not any("audio" in event.type for event in events)


def test_a_function_is_called_by_the_client_and_its_output_is_answered(port):
    async def work(connection):
        content = [{"type": "input_text", "text": "What is the time?"}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        events = await until(connection, "response.done")
        called = next(event for event in events if event.type == "response.function_call_arguments.done")
        output = {"type": "function_call_output", "call_id": called.call_id, "output": "It is nine."}
        await connection.conversation.item.create(item=output)
        await connection.response.create(response={"output_modalities": ["text"]})
        return called, events[-1].response, (await until(connection, "response.done"))[-1].response

    tool = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
    called, first, second = talked(port, work, tools=[tool])
    assert called.name == "clock" and json.loads(called.arguments) == {"zone": "Paris"}
    assert first.output[0].type == "function_call" and second.output[0].content[0].text == "You said: It is nine."


def test_an_answer_is_truncated_retrieved_and_deleted(port):
    async def work(connection):
        content = [{"type": "input_text", "text": "One thing, and another thing, and more of that."}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        item = (await until(connection, "response.done"))[-1].response.output[0].id
        await connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=400)
        cut = (await until(connection, "conversation.item.truncated"))[-1]
        await connection.conversation.item.retrieve(item_id=item)
        found = (await until(connection, "conversation.item.retrieved"))[-1].item
        await connection.conversation.item.delete(item_id=item)
        await until(connection, "conversation.item.deleted")
        await connection.conversation.item.retrieve(item_id=item)
        return cut, found, (await until(connection, "error"))[-1].error

    cut, found, error = talked(port, work)
    assert cut.audio_end_ms == 400 and found.status == "incomplete"
    assert "another" not in found.content[0].transcript and error.code == "item_not_found"


BAD = {
    "unknown_event": '{"type": "dance", "event_id": "mine"}',
    "invalid_json": "{nothing",
    "invalid_audio": '{"type": "input_audio_buffer.append", "audio": "%%%"}',
    "message_too_long": '{"type": "input_audio_buffer.append", "audio": "' + "A" * 13_981_016 + '"}',
    "input_audio_buffer_commit_empty": '{"type": "input_audio_buffer.commit"}',
    "response_cancel_not_active": '{"type": "response.cancel"}',
    "invalid_item": '{"type": "conversation.item.create", "item": {"type": "song"}}',
    "invalid_value": '{"type": "session.update", "session": {"audio": {"output": {"voice": "nobody"}}}}',
}


def test_what_cannot_be_used_is_told_in_one_sentence_and_the_session_goes_on(port):
    async def work(connection):
        told = {}
        for code, message in BAD.items():
            await connection._connection.send(message)
            told[code] = (await until(connection, "error"))[-1].error
        await connection.session.update(session={"type": "realtime", "unheard_of": {"x": 1}})
        await until(connection, "session.updated")
        return told

    told = talked(port, work)
    assert [error.code for error in told.values()] == list(BAD) and told["unknown_event"].event_id == "mine"
    assert all(error.message.count(". ") == 0 and error.message.endswith(".") for error in told.values())
    assert LONGEST_MESSAGE < 13_981_016


def heard(socket):
    return asyncio.wait_for(socket.recv(), 60)


def test_a_second_session_of_the_same_name_is_told_and_has_another(port, talks):
    async def run():
        address = f"ws://127.0.0.1:{port[0]}/v1/realtime?session=mine"
        async with connect(address, proxy=None) as one, connect(address, proxy=None) as other:
            first, error, second = [json.loads(await heard(socket)) for socket in (one, other, other)]
            return first["session"]["id"], error["error"]["code"], second["session"]["id"]

    first, code, second = asyncio.run(run())
    assert first == "mine" and code == "session_exists" and second.startswith("sess_")


def test_a_closed_tab_frees_its_slot_its_name_and_its_words_within_a_second(port, talks):
    async def run():
        async with connect(f"ws://127.0.0.1:{port[0]}/v1/realtime?session=brief", proxy=None) as socket:
            await socket.send('{"type": "response.create", "response": {"instructions": "Say nothing."}}')
            while json.loads(await heard(socket))["type"] != "response.created":
                pass
            assert "brief" in talks.open
        closed = time.monotonic()
        while "brief" in talks.open or talks.studio.queue._places or len(talks.studio.generator.prompts._ids):
            await asyncio.sleep(0.01)
        return time.monotonic() - closed

    assert asyncio.run(asyncio.wait_for(run(), 60)) < 1


def test_a_refusal_of_any_length_fits_into_the_frame_that_closes_a_websocket(port):
    async def run():
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "websocket.connect"}

        name = "ö" * 200
        scope = {"type": "websocket", "path": "/v1/realtime", "headers": [(b"host", name.encode("latin-1"))]}
        await Doors(None, Access())(scope, receive, send)
        return sent

    (closed,) = asyncio.run(run())
    assert closed["code"] == 1008 and 100 < len(closed["reason"].encode()) <= 123


@pytest.mark.parametrize(
    "path, headers, comes_in",
    [
        ("/v1/realtime", {}, False),
        ("/v1/realtime", {"Authorization": f"Bearer {KEY}"}, True),
        ("/v1/realtime", {"Authorization": f"Bearer {KEY}", "Origin": "https://example.org"}, False),
        ("/csm/talk", {}, False),
        ("/csm/talk", {"Cookie": Access(key=KEY).cookie().partition(";")[0]}, True),
        ("/v1/realtime", {"Cookie": Access(key=KEY).cookie().partition(";")[0]}, False),
    ],
)
def test_a_talk_is_for_those_who_may_come_in(port, path, headers, comes_in):
    async def run():
        try:
            async with connect(f"ws://127.0.0.1:{port[1]}{path}", additional_headers=headers, proxy=None) as socket:
                return json.loads(await heard(socket))["type"] == "session.created"
        except Exception as error:
            assert "403" in str(error)
            return False

    assert asyncio.run(run()) is comes_in


# The language model behind it


def asked(model, **more):
    async def run():
        return [part async for part in model.answer(Prompt([{"role": "user", "content": "Hi."}], **more))]

    return asyncio.run(run())


def test_a_chat_api_is_asked_by_address_key_and_name(port):
    model = ChatModel(f"http://127.0.0.1:{port[0]}/key", "parrot", "secret")
    assert asked(model) == ["Hello ", "parrot"] and "secret" not in f"{model} {model.shown}"
    assert asked(model, tools=[{"type": "function"}]) == [Call("call_1", "clock", '{"a": 1}')]


@pytest.mark.parametrize(
    "way, sentence",
    [
        ("key", "refuses the key"),
        ("404", "knows no model called"),
        ("429", "too much to do"),
        ("500", "status 500"),
        ("garbage", "is no answer"),
        ("broken", "is no answer"),
    ],
)
def test_a_language_model_that_goes_wrong_is_named_in_one_sentence(port, way, sentence):
    with pytest.raises(InputError, match=sentence):
        asked(ChatModel(f"http://127.0.0.1:{port[0]}/{way}", "parrot", "wrong"))


def test_a_language_model_that_is_down_is_told():
    with pytest.raises(InputError, match="can't be reached"):
        asked(ChatModel("http://127.0.0.1:9/v1", "parrot"))


# What a session can be told


def options(**session):
    return read_options(session, MANUAL, shipped_voices())


def test_what_a_session_does_not_know_is_left_alone_and_what_it_knows_is_read():
    turns = {"type": "semantic_vad", "eagerness": "low", "interrupt_response": False}
    chosen = options(audio={"input": {"turn_detection": turns}, "output": {"voice": "onyx"}}, tracing="auto")
    assert (chosen.voice, chosen.turns.kind) == ("awb", "semantic")
    assert chosen.turns.answers and not chosen.turns.interrupts
    assert options(max_output_tokens=99).most_tokens == 99 and options() == MANUAL


@pytest.mark.parametrize(
    "session",
    [
        {"audio": {"input": {"format": {"type": "audio/pcmu"}}}},
        {"audio": {"input": {"turn_detection": {"type": "telepathy"}}}},
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 7}}}},
        {"instructions": 7},
        {"output_modalities": ["smell"]},
        {"tools": {}},
        {"max_output_tokens": True},
    ],
)
def test_what_a_session_cannot_be_told_is_refused(session):
    with pytest.raises(InputError):
        options(**session)
