"""Every door through which sound leaves carries the watermark, and none carries it into what the model hears."""

import base64
import io
import json
import secrets
import shutil
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from starlette.applications import Starlette
from starlette.testclient import TestClient

from csm import Segment, load
from csm.audio import load_audio
from csm.cli import main
from csm.config import SAMPLE_RATE
from csm.conversation.events import TurnChunk
from csm.conversation.parsing import parse_script
from csm.conversation.session import Session
from csm.conversation.studio import Job, Studio
from csm.settings import Settings
from csm.speech.voices import find_voice, load_prompt
from csm.watermark import detect
from csm.web.endpoints import GENERATE, OPTIONAL, Endpoints
from csm.web.openai import SpeechApi
from csm.web.pages import Pages
from csm.web.routes import PageRoutes
from tests.test_inside import tab

SCRIPT = "A: Good morning! Did you sleep well last night?\nB: Not really. The wind kept me awake until four."
VOICES = {"A": find_voice("slt"), "B": find_voice("bdl")}
LONG_ENOUGH = 1.0  # seconds: in much less the mark is there but may be too short to be found


@pytest.fixture(scope="module")
def studio():
    return Studio(load("nano", "cpu"))


@pytest.fixture(scope="module")
def session(studio):
    session = Session(parse_script(SCRIPT), VOICES)
    list(session.speak(studio.generator))
    return session


def marked(sound) -> bool:
    """Of samples, of a file's bytes, or of a file."""
    if isinstance(sound, bytes):
        samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
        assert rate in (SAMPLE_RATE, 48_000)
        sound = torch.from_numpy(samples[:: rate // SAMPLE_RATE].copy())
    elif not isinstance(sound, torch.Tensor):
        sound = load_audio(sound)
    assert len(sound) >= LONG_ENOUGH * SAMPLE_RATE
    return detect(sound).marked


def pcm(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32_768)


def test_what_python_gives_is_marked_unless_it_is_for_measuring(studio):
    generator, voice = studio.generator, VOICES["A"]
    context = [Segment(0, voice.transcript, load_prompt(voice))]
    asked = dict(text="Good morning! Did you sleep well last night?", speaker=0, context=context, seed=7)
    whole, bare = generator.generate(**asked), generator.generate(**asked, marked=False)
    assert marked(whole) and not marked(bare) and len(whole) == len(bare)
    assert torch.equal(whole, torch.cat(list(generator.stream(**asked))))
    conversation = generator.conversation(context, seed=7)
    turn = conversation.say("Good morning! Did you sleep well last night?", 0)
    assert torch.equal(turn.audio, whole) and torch.equal(turn.unmarked, bare)
    again = generator.decode(turn.codes, turn.pieces[0].embedding)
    assert torch.equal(again, bare), "codes know nothing of the mark"


def test_what_the_page_plays_and_saves_is_marked(studio, tmp_path):
    client = TestClient(Starlette(routes=PageRoutes(Pages(studio)).routes()))

    def ask(token, name, **more):
        return client.post(f"/csm/{name}", json={"token": token, "script": SCRIPT, **more})

    token = secrets.token_hex(16)
    lines = [json.loads(line.removeprefix("data: ")) for line in ask(token, "speak").text.split("\n\n") if line]
    live = b"".join(base64.b64decode(line["pcm"]) for line in lines if line["type"] == "sound")
    assert marked(pcm(live))
    view = lines[-1]["view"]

    def got(token, name) -> bytes:
        answer = client.get(f"/csm/{name}")
        assert answer.status_code == 200
        return answer.content

    assert marked(got(token, f"whole/{token}/{view['sound']['version']}"))
    assert all(marked(got(token, f"take/{token}/{turn['takes'][0]['key']}")) for turn in view["turns"])
    for kind in ("wav", "mp3", "flac"):
        assert marked(got(token, f"save/{token}/{kind}")), kind
    for kind in ("stems", "zip"):
        with zipfile.ZipFile(io.BytesIO(got(token, f"save/{token}/{kind}"))) as archive:
            sounds = [name for name in archive.namelist() if name.endswith((".wav", ".mp3", ".flac"))]
            assert len(sounds) >= 2 and all(marked(archive.read(name)) for name in sounds), kind
    other = secrets.token_hex(16)
    opened = client.post(f"/csm/open?token={other}", content=got(token, f"save/{token}/csm")).json()
    assert marked(got(other, f"whole/{other}/{opened['sound']['version']}"))


def test_what_generate_of_the_api_gives_is_marked(studio, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    given = {"script": SCRIPT, "voice_a": "slt", "voice_b": "bdl", **OPTIONAL}
    path, _ = Endpoints(studio.generator, studio.perform).generate(**dict.fromkeys(GENERATE) | given)
    assert marked(path)


FORMATS = ["mp3", "opus", "flac", "wav", "pcm", *(["aac"] if shutil.which("ffmpeg") else [])]


@pytest.fixture(scope="module")
def speech(studio):
    """`/v1`, with a job that is spoken once: what happened is told for every format."""
    told: list = []

    def once(job: Job):
        if not told:
            told.extend(studio.perform(job))
        yield from told

    routes = SpeechApi(studio.generator, once).routes()
    return TestClient(Starlette(routes=routes))


@pytest.mark.parametrize("stream", [None, "audio", "sse"])
@pytest.mark.parametrize("form", FORMATS)
def test_what_v1_gives_is_marked(speech, form, stream, tmp_path):
    asked = {"voice": "slt", "input": "Good morning! The rain has stopped.", "response_format": form}
    answer = speech.post("/v1/audio/speech", json=asked | {"stream_format": stream})
    assert answer.status_code == 200
    data = answer.content
    if stream == "sse":
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
        data = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    if form == "pcm" or (form == "wav" and stream):  # a WAV that is still open says no length
        assert marked(pcm(data[44 if form == "wav" else 0 :]))
    else:
        path = tmp_path / f"speech.{form}"
        path.write_bytes(data)
        if form == "aac":  # what reads sound files here can't
            subprocess.run(["ffmpeg", "-v", "error", "-i", path, path := tmp_path / "speech.wav"], check=True)
        assert marked(path)


def test_what_look_inside_plays_is_marked(studio, session):
    page = replace(tab(studio.generator), generator=studio.generator)
    prompt, take = session.prompts["A"], session.turns[0].take
    last = [Segment(0, prompt.voice.transcript, codes=prompt.codes), Segment(0, take.text, codes=take.codes)]
    *_, done = page.look("1", None, "", last)
    full = max(page.players)
    rate, samples = done[page.players[full]]
    assert rate == SAMPLE_RATE and marked(torch.from_numpy(samples.astype(np.float32) / 32_767))


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".flac"])
def test_what_the_command_line_writes_is_marked(tmp_path, suffix, capsys):
    script = tmp_path / "script.txt"
    script.write_text(SCRIPT)
    voices = ["--voice", "A=slt", "--voice", "B=bdl"]
    out, stems = tmp_path / f"talk{suffix}", tmp_path / "stems"
    assert main(["generate", "--script", str(script), *voices, "--out", str(out), "--stems", str(stems)]) == 0
    assert marked(out) and all(marked(stem) for stem in stems.iterdir())
    assert main(["watermark", "check", str(out)]) == 0 and capsys.readouterr().out.startswith("yes")


def test_sound_on_the_way_is_marked_once_and_what_is_judged_and_heard_is_not(studio):
    events = list(Session(parse_script(SCRIPT), VOICES, Settings(seed=3)).speak(studio.generator))
    live = torch.cat([event.audio for event in events if isinstance(event, TurnChunk)])
    session = events[-1].session
    assert marked(live) and marked(session.whole(studio.generator))
    assert not marked(torch.cat(session.sounds(studio.generator)))
