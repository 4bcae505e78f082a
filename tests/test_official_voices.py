"""The prompts that were published with CSM-1B: offered with it, fetched when chosen, and always what they say."""

from __future__ import annotations

import io
import wave

import pytest
import torch

from csm import InputError
from csm.checkpoint.hub import HUB_MODEL
from csm.cli import main
from csm.config import PRESETS
from csm.conversation.events import Performed
from csm.conversation.parsing import parse_script
from csm.settings import Settings
from csm.speech.voices import fetched, find_voice, load_prompt, official_voices, shipped_voices
from csm.web.endpoints import Choice, Endpoints, cast, default_voices
from tests.hub import Repository, asked_by_the_client, go_offline, serving
from tests.small import performed, small_generator

TOKEN = "hf_" + "secret" * 5
NAMES = ["conversational_a", "conversational_b", "read_speech_a", "read_speech_b", "read_speech_c", "read_speech_d"]
RATES = {name: 44_100 if name.startswith("conversational") else 24_000 for name in NAMES}


def seconds(name: str) -> float:
    return (official_voices()[name].published_bytes - 44) / 2 / RATES[name]


def recording(name: str) -> bytes:
    """A wav file as long as the published one: 16 bits, mono, noise for speech."""
    samples = (official_voices()[name].published_bytes - 44) // 2
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 4_000
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(RATES[name])
        opened.writeframes(noise.clamp(-32_000, 32_000).to(torch.int16).numpy().tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {f"prompts/{name}.wav": recording(name) for name in ("conversational_a", "read_speech_c")}


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    published = Repository(dict(files), gated=True, granted={TOKEN})
    with serving({HUB_MODEL: published}) as hub, asked_by_the_client(hub, tmp_path, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
        hub.tokens = {TOKEN}
        yield hub


@pytest.fixture
def of_1b_size():
    """A small model that says it has the published one's size: enough for what is offered with it."""
    generator = small_generator()
    generator.engine.config = PRESETS["tiny"]
    return generator


def test_there_are_six_with_name_origin_and_licence():
    voices = official_voices()
    assert list(voices) == NAMES
    for name, voice in voices.items():
        assert voice.path.as_posix() == f"prompts/{name}.wav"
        assert voice.licence and voice.origin and voice.description
    assert not set(voices) & set(shipped_voices())


@pytest.mark.parametrize("name", NAMES)
def test_a_transcript_says_as_much_as_its_recording(name):
    """People speak 11 to 18 letters a second; a transcript that was cut short would fall below."""
    text = official_voices()[name].transcript
    assert text == " ".join(text.split())
    assert 11 < len(text) / seconds(name) < 18
    assert 5 < seconds(name) <= 30


def test_they_are_offered_when_a_model_of_1b_is_loaded(of_1b_size):
    assert list(small_generator().voices()) == list(shipped_voices())
    assert list(of_1b_size.voices()) == [*shipped_voices(), *NAMES]


def test_nothing_is_downloaded_before_one_is_chosen(hub, of_1b_size, capsys):
    of_1b_size.voices()
    find_voice("Conversational_A")
    listed = Endpoints(of_1b_size, iter).voices()
    assert [voice["name"] for voice in listed][-6:] == NAMES
    assert main(["voices", "--model", HUB_MODEL]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][-6:] == NAMES
    assert set(default_voices()) < set(shipped_voices())
    assert hub.log == []


def test_a_chosen_one_is_fetched_once(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    wave = load_prompt(find_voice("conversational_a"))
    assert wave.shape == (720_000,)  # 375 frames
    load_prompt(find_voice("conversational_a"))
    assert hub.downloads() == [f"{HUB_MODEL}:prompts/conversational_a.wav"]
    go_offline(monkeypatch)
    assert torch.equal(load_prompt(find_voice("conversational_a")), wave)


def test_without_access_it_comes_from_the_publisher_s_open_space(hub, files):
    voice = find_voice("read_speech_c")
    with pytest.raises(InputError, match=f"https://huggingface.co/{HUB_MODEL}"):
        load_prompt(voice)
    hub.repositories = {HUB_MODEL: Repository(files, kind="spaces")}
    assert fetched(voice).path.read_bytes() == files["prompts/read_speech_c.wav"]


def test_a_recording_that_was_exchanged_is_not_used_with_the_old_words(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories[HUB_MODEL].files["prompts/read_speech_c.wav"] = recording("read_speech_d")
    with pytest.raises(InputError, match="no longer the one that its transcript was written for"):
        load_prompt(find_voice("read_speech_c"))


def test_offline_one_that_was_never_fetched_is_refused_in_one_sentence(hub, monkeypatch):
    go_offline(monkeypatch)
    with pytest.raises(InputError, match="hub can't be reached") as error:
        load_prompt(find_voice("read_speech_c"))
    assert "\n" not in str(error.value)


def test_a_conversation_is_spoken_with_one(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    generator = small_generator(max_positions=2_048)
    voices = cast(parse_script("A: Hi."), {"A": Choice("read_speech_c")}, official_voices())
    assert voices["A"].path.is_file()
    settings = Settings(max_turn_seconds=0.4)
    *_, last = performed(generator, parse_script("A: Hi."), voices, settings)
    assert isinstance(last, Performed) and last.report["audio_seconds"] == 0.4


def test_the_page_plays_one_when_it_is_chosen_and_tells_why_it_can_t(hub, files, of_1b_size, monkeypatch):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from csm.conversation.studio import Studio
    from csm.web.pages import Pages
    from csm.web.routes import PageRoutes

    pages = Pages(Studio(of_1b_size))
    pages.page("0" * 32)
    page = TestClient(Starlette(routes=PageRoutes(pages).routes()))
    address = f"/csm/voice/{'0' * 32}?name="
    refused = page.get(f"{address}read_speech_c")
    assert refused.status_code == 400 and f"https://huggingface.co/{HUB_MODEL}" in refused.json()["error"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert page.get(f"{address}read_speech_c").content == files["prompts/read_speech_c.wav"]
    assert page.get(f"{address}slt").content.startswith(b"RIFF")
