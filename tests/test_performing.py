"""A script and voices become one conversation: reports, budgets, stopping, the mark at the end."""

import dataclasses

import pytest
import torch

from csm import InputError, watermark
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.events import Performed, TurnFinished, TurnStarted
from csm.conversation.parsing import parse_script
from csm.settings import Settings
from csm.speech.voices import shipped_voices
from tests.small import end_after, performed, small_generator

SCRIPT = "A: Hello there.\nB: How are you?\nA: Very well."
SHORT = Settings(seed=1, max_turn_seconds=0.8)


@pytest.fixture
def voices():
    shipped = list(shipped_voices().values())
    return {"A": shipped[0], "B": shipped[1]}


@pytest.fixture
def generator():
    return small_generator(max_positions=512)


def told(*arguments, **options) -> Performed:
    *_, last = performed(*arguments, **options)
    assert isinstance(last, Performed)
    return last


def test_turns_start_and_finish_in_order(generator, voices):
    events = list(performed(generator, parse_script(SCRIPT), voices, SHORT))
    assert [type(event) for event in events] == [TurnStarted, TurnFinished] * 3 + [Performed]


def test_the_report_adds_up(generator, voices):
    end_after(generator, 6)
    result = told(generator, parse_script(SCRIPT), voices, SHORT)
    report, turns = result.report, result.report["turns"]
    assert [turn["state"] for turn in turns] == ["ended"] * 3
    assert [turn["speaker"] for turn in turns] == ["A", "B", "A"]
    assert [turn["frames"] for turn in turns] == [6] * 3
    assert [turn["start"] for turn in turns] == [0.0, 0.48, 0.96]
    assert turns[-1]["end"] == report["audio_seconds"] == 1.44
    assert len(result.audio) == 18 * FRAME_SIZE == round(report["audio_seconds"] * SAMPLE_RATE)
    assert report["positions_prefilled"] == sum(turn["positions_prefilled"] for turn in turns)
    assert turns[1]["positions_prefilled"] < 30 < turns[0]["positions_prefilled"]
    assert report["real_time_factor"] == pytest.approx(report["generation_seconds"] / 1.44, abs=1e-3)
    assert 0 < report["first_audio_seconds"] < report["generation_seconds"]
    assert {"model", "device", "seed", "sample_rate"} <= set(report)


def test_the_same_seed_gives_the_same_conversation(generator, voices):
    first, second, other = (
        told(generator, parse_script(SCRIPT), voices, dataclasses.replace(SHORT, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.audio, second.audio)
    assert not torch.equal(first.audio, other.audio)


def test_the_whole_is_marked_once_and_the_turns_are_not(generator, voices, monkeypatch):
    marked = []
    monkeypatch.setattr(watermark, "mark", lambda wave: marked.append(wave) or wave + 1)
    events = list(performed(generator, parse_script(SCRIPT), voices, SHORT))
    turns = torch.cat([event.audio for event in events if isinstance(event, TurnFinished)])
    assert len(marked) == 1 and torch.equal(marked[0], turns)
    assert torch.equal(events[-1].audio, turns + 1)


def test_a_speaker_without_a_voice_is_named(generator, voices):
    with pytest.raises(InputError, match="Speaker B has no voice"):
        told(generator, parse_script(SCRIPT), {"A": voices["A"]}, SHORT)


def test_a_voice_without_a_transcript_is_refused(generator, voices):
    voices["B"] = dataclasses.replace(voices["B"], transcript="")
    with pytest.raises(InputError, match="speaker B has no transcript"):
        told(generator, parse_script(SCRIPT), voices, SHORT)


def test_a_script_beyond_the_budget_is_spoken_to_its_end_and_the_report_says_what_was_forgotten(voices):
    generator = small_generator(max_positions=512)
    script = "\n".join(f"{'AB'[i % 2]}: This is one more line of a long script." for i in range(12))
    result = told(generator, parse_script(script), voices, SHORT)
    assert len(result.report["turns"]) == 12 and result.report["window_slides"] > 0
    assert "the oldest turns left its memory" in result.report["notice"]
    assert len(result.audio) == sum(turn["frames"] for turn in result.report["turns"]) * FRAME_SIZE


def test_prompts_that_leave_no_room_say_how_many_seconds_fit(voices):
    with pytest.raises(InputError, match=r"only \d+\.\d s fit"):
        told(small_generator(max_positions=200), parse_script(SCRIPT), voices, SHORT)


def test_stopping_keeps_what_was_made(generator, voices):
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked > 3

    events = list(performed(generator, parse_script(SCRIPT), voices, SHORT, stop))
    turns = events[-1].report["turns"]
    assert [turn["state"] for turn in turns] == ["stopped"]
    assert 0 < turns[0]["frames"] < 10
    assert len(events[-1].audio) == turns[0]["frames"] * FRAME_SIZE


@pytest.mark.parametrize("options", [{"seed": -1}, {"max_turn_seconds": 0.0}, {"temperature": 0.0}, {"topk": 0}])
def test_impossible_settings_are_refused_in_one_sentence(options):
    with pytest.raises(InputError, match="choose"):
        Settings(**options)
