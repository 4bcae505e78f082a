"""Home Assistant's protocol, spoken by its own client to the bridge, and by that to a server of a small model."""

import asyncio
import threading
import time
from functools import partial

import pytest
import uvicorn
from starlette.applications import Starlette

from csm.conversation.studio import Studio
from csm.web.openai import SpeechApi
from tests.serving import free_port
from tests.small import end_after, small_generator

pytest.importorskip("wyoming", reason="wyoming is not installed: pip install wyoming")

from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.server import AsyncTcpServer
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from csm.web.wyoming import Bridge

FRAMES = 3


@pytest.fixture(scope="module")
def url():
    generator = small_generator(max_positions=1_200)
    end_after(generator, FRAMES)
    routes, port = SpeechApi(generator, Studio(generator).perform).routes(), free_port()
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(20)


def said(url, last, *events):
    """What the bridge answers to these events, until one of the type `last`."""

    async def talk():
        server = AsyncTcpServer("127.0.0.1", port := free_port())
        await server.start(partial(Bridge, url=url, voice="slt"))
        try:
            async with AsyncTcpClient("127.0.0.1", port) as client:
                for event in events:
                    await client.write_event(event.event())
                answers = []
                while not answers or answers[-1].type not in (last, "error"):
                    answers.append(await asyncio.wait_for(client.read_event(), 60))
                return answers
        finally:
            await server.stop()

    return asyncio.run(talk())


def seconds(answers):
    sound = [answer for answer in answers if answer.type == "audio-chunk"]
    assert all((part.data["rate"], part.data["width"], part.data["channels"]) == (24_000, 2, 1) for part in sound)
    return sum(len(part.payload) for part in sound) / 48_000


def test_the_bridge_says_who_speaks_and_that_text_may_stream(url):
    (answer,) = said(url, "info", Describe())
    (program,) = Info.from_event(answer).tts
    assert program.supports_synthesize_streaming and "slt" in [voice.name for voice in program.voices]


def test_a_text_becomes_sound_between_a_start_and_a_stop(url):
    answers = said(url, "audio-stop", Synthesize("Hello there.", voice=SynthesizeVoice(name="bdl")))
    assert answers[0].type == "audio-start" and answers[-1].type == "audio-stop"
    assert seconds(answers) == pytest.approx(FRAMES * 0.08)


def test_a_text_that_streams_in_becomes_sound_clause_by_clause(url):
    pieces = [SynthesizeChunk("Good mor"), SynthesizeChunk("ning! And how"), SynthesizeChunk(" are you?")]
    whole = Synthesize("Good morning! And how are you?")  # sent for older servers, and not spoken twice
    answers = said(url, "synthesize-stopped", SynthesizeStart(), *pieces, whole, SynthesizeStop())
    assert seconds(answers) == pytest.approx(2 * FRAMES * 0.08)
    assert [answer.type for answer in answers][-2:] == ["audio-stop", "synthesize-stopped"]


def test_what_can_not_be_spoken_is_told(url):
    (*_, last) = said(url, "audio-stop", Synthesize("Hello.", voice=SynthesizeVoice(name="nobody")))
    assert last.type == "error" and "nobody" in last.data["text"]
    (*_, last) = said(f"http://127.0.0.1:{free_port()}/v1", "info", Describe())
    assert last.type == "error"
