"""Speech can be heard faster or slower: the same codes and pitch, and every time that is told follows."""

import json
from dataclasses import replace

import pytest
import soundfile
import torch
from starlette.applications import Starlette
from starlette.testclient import TestClient

from csm.cli import main
from csm.config import SAMPLE_RATE
from csm.conversation.exports import subtitles
from csm.conversation.parsing import parse_script
from csm.conversation.session import Session
from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.settings import Settings
from csm.speech import tempo
from csm.speech.tempo import Tempo, at_speed, length_at
from csm.speech.voices import shipped_voices
from csm.watermark import detect
from csm.web.pages import Pages
from csm.web.routes import PageRoutes
from tests.small import small_generator
from tests.test_pages import Visitor

TALK = "A: Good morning.\nB: Hello."


def tone(hertz: float, seconds: float) -> torch.Tensor:
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.3 * torch.sin(2 * torch.pi * hertz * time) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * time))


def pitch(wave: torch.Tensor) -> float:
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    return float(spectrum.argmax()) * SAMPLE_RATE / len(wave)


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.75, 1.3, 2.0, 3.1, 4.0])
def test_another_speed_changes_the_length_and_not_the_pitch(speed):
    made = at_speed(tone(220, 2), speed)
    assert len(made) == length_at(2 * SAMPLE_RATE, speed)
    assert pitch(made) == pytest.approx(220, abs=2)
    assert float(made.abs().max()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("speed", [0.5, 1.7, 4.0])
def test_the_pieces_that_come_do_not_matter_and_little_is_held_back(speed):
    wave, stretched, taken, given = tone(180, 2), Tempo(speed), 0, []
    for piece in wave.split(1_920):
        taken += len(piece)
        given.append(stretched.push(piece))
        assert taken - speed * sum(map(len, given)) <= 0.25 * SAMPLE_RATE
    assert torch.equal(torch.cat([*given, stretched.flush()]), at_speed(wave, speed))


def test_at_speed_one_nothing_is_touched():
    wave = tone(220, 0.1)
    assert at_speed(wave, 1.0) is wave and Tempo(1.0).push(wave) is wave


def test_a_sound_of_nothing_stays_nothing():
    assert not len(at_speed(torch.zeros(0), 2.0))


def test_without_pyav_another_speed_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(tempo, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install av"):
        at_speed(tone(220, 0.1), 2.0)


def test_a_turn_has_the_same_codes_at_any_speed_and_what_streams_is_what_comes_at_once(generator):
    asked = dict(text="Hello.", speaker=0, max_audio_length_ms=1_600, seed=3)
    usual, fast = (generator.generate(**asked, speed=speed) for speed in (1.0, 1.6))
    assert len(fast) == length_at(len(usual), 1.6)
    assert torch.equal(fast, torch.cat(list(generator.stream(**asked, speed=1.6))))
    turn = generator.conversation(seed=3).say("Hello.", 0, 1_600, speed=1.6)
    assert torch.equal(turn.codes, generator.generate_codes(**asked))
    assert torch.equal(turn.unmarked, generator.decode(turn.codes))


def spoken(generator, settings: Settings) -> Session:
    voices = dict(zip("AB", shipped_voices().values()))
    session = Session(parse_script(TALK), voices, settings)
    list(session.speak(generator, live=False))
    return session


def test_sound_report_and_subtitles_follow_a_speed_that_is_set_afterwards():
    generator = small_generator(max_positions=600)
    session = spoken(generator, Settings(max_turn_seconds=1.6))
    usual = session.report(generator)
    session.settings = replace(session.settings, speed=2.0)
    report, spans, sound = session.report(generator), session.spans(), session.whole(generator)
    assert len(sound) == spans[-1].end == round(report["audio_seconds"] * SAMPLE_RATE)
    assert report["audio_seconds"] == pytest.approx(usual["audio_seconds"] / 2, abs=0.001)
    for turn, before in zip(report["turns"], usual["turns"]):
        assert turn["end"] - turn["start"] == pytest.approx((before["end"] - before["start"]) / 2, abs=0.001)
        assert turn["frames"] == before["frames"] and not turn["stale"]
    assert subtitles(spans, ".srt", sound).count("-->") == 2
    assert subtitles(spans, ".srt").splitlines()[1].endswith(f"{report['turns'][0]['end']:06.3f}".replace(".", ","))


def test_on_the_page_another_speed_is_heard_without_speaking_again():
    client = TestClient(Starlette(routes=PageRoutes(Pages(Studio(small_generator(max_positions=600)))).routes()))
    visitor = Visitor(client, TALK)
    *_, end = visitor.speak()
    view = visitor.plan(settings={**visitor.form["settings"], "speed": 0.5})
    assert view["sound"]["seconds"] == pytest.approx(2 * end["view"]["sound"]["seconds"], abs=0.001)
    assert view["sound"]["version"] != end["view"]["sound"]["version"] and view["first_open"] is None


def test_the_command_line_speaks_faster_and_the_mark_is_there(tmp_path, capsys):
    text, out = "Good morning! The rain has stopped, and the sun is out again.", tmp_path / "fast.wav"
    asked = ["say", text, "--model", "nano", "--device", "cpu", "--out", str(out), "--json", "-", "--speed", "1.5"]
    assert main(asked) == 0
    report = json.loads(capsys.readouterr().out)
    sound, _ = soundfile.read(out, dtype="float32")
    assert len(sound) == round(report["audio_seconds"] * SAMPLE_RATE)
    (turn,) = report["turns"]
    assert 1.5 * report["audio_seconds"] == pytest.approx(0.08 * turn["frames"] - turn["trimmed"], abs=0.001)
    assert detect(torch.from_numpy(sound)).marked
