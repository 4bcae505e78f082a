"""A turn that went wrong says so: judged when it ends, tried again unless it was heard, marked if it stays wrong."""

import json

import pytest
import torch

from csm.cli import main
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.doubts import CUT, NOTHING, SILENT, doubt, helps, longest_silence
from csm.conversation.events import Performed, TurnChunk
from csm.conversation.parsing import parse_script
from csm.conversation.project import open_project, save_project
from csm.conversation.session import Session
from csm.conversation.takes import Judges, Scores, level_of
from csm.settings import Settings
from csm.speech.generator import silence
from csm.speech.voices import shipped_voices
from tests.small import small_generator

TEXT = "Hello there."


def tone(seconds, level=0.1):
    return level * torch.sin(torch.arange(int(seconds * SAMPLE_RATE)) * 0.1)


@pytest.fixture(scope="module")
def voices():
    return {"A": next(iter(shipped_voices().values()))}


def lasting(*lengths):
    """A small model whose turns end by themselves after so many frames each, the last number again and again."""
    generator = small_generator(max_positions=900)
    engine, made, turns = generator.engine, 0, list(lengths)
    sample = engine.model.sample_frame

    def sample_frame(state, sampling, noise):
        nonlocal made
        codes, made = sample(state, sampling, noise), made + 1
        if made > turns[0]:
            made = 0
            if len(turns) > 1:
                del turns[0]
            return torch.zeros_like(codes)
        codes[:, 0].clamp_min_(1)
        return codes

    engine.model.sample_frame = sample_frame
    return generator


def spoken(generator, voices, script=f"A: {TEXT}", **how):
    session = Session(parse_script(script), voices, Settings(seed=1, max_turn_seconds=9, takes=how.pop("takes", 1)))
    events = list(session.speak(generator, **how))
    assert isinstance(events[-1], Performed)
    return session, events


@pytest.mark.parametrize(
    "scores,state,audio,told",
    [
        (Scores(True, 1.0), "ended", tone(1), ""),
        (Scores(True, 0.7), "ended", tone(1), ""),
        (Scores(True, 1.5), "ended", tone(1), ""),
        (Scores(True, 2.6), "ended", tone(1), "it is 2.6 times as long as its text should take"),
        (Scores(True, 0.3), "ended", tone(1), "it is 0.3 times as long as its text should take"),
        (Scores(False, 0.5), "capped", tone(1), CUT),
        (Scores(False, 0.1), "stopped", torch.zeros(0), ""),
        (Scores(False, 0.1), "ended", torch.zeros(0), NOTHING),
        (Scores(True, 1.0), "ended", tone(1, 1e-4), SILENT),
        (
            Scores(True, 1.0),
            "ended",
            torch.cat([tone(1), torch.zeros(48_000), tone(1)]),
            "it is silent for 2.0 s within",
        ),
        (Scores(True, 1.0, word_errors=0.6), "ended", tone(1), "60 % of its words were heard otherwise"),
        (Scores(True, 1.0, word_errors=0.2), "ended", tone(1), ""),
    ],
)
def test_what_is_wrong_with_a_take_is_said_in_words(scores, state, audio, told):
    assert doubt(scores, state, "There are six words in this.", audio) == told


def test_a_word_or_two_that_were_heard_otherwise_prove_nothing():
    assert doubt(Scores(True, 1.0, word_errors=1.0), "ended", "Hi Bo.", tone(1)) == ""


def test_a_silence_is_measured_to_its_window():
    wave = torch.cat([tone(1), torch.zeros(24_000), tone(0.5)])
    assert longest_silence(wave, level_of(wave)) == pytest.approx(1.0, abs=0.04)


def test_another_seed_does_not_help_a_text_that_has_no_room():
    assert helps(CUT, 100, 250) and not helps(CUT, 240, 250) and not helps("", 10, 250) and helps(NOTHING, 240, 250)


def test_a_turn_that_went_wrong_is_tried_again_with_other_seeds_until_it_is_right(voices):
    session, events = spoken(lasting(80, 12), voices, live=False)
    turn, (told,) = session.turns[0], events[-1].report["turns"]
    assert [len(take.codes) for take in turn.takes] == [80, 12] and turn.chosen == 1
    assert (told["again"], told["doubt"], told["frames"], told["takes"]) == (1, "", 12, 2)
    assert "its length is" in told["reason"] and len({take.seed for take in turn.takes}) == 2
    assert "warning" not in events[-1].report


def test_it_is_tried_again_twice_at_most_and_what_is_still_wrong_is_marked(voices):
    session, events = spoken(lasting(90, 80, 85), voices, live=False)
    (told,) = events[-1].report["turns"]
    assert [len(take.codes) for take in session.turns[0].takes] == [90, 80, 85]
    assert told["again"] == 2 and told["frames"] == 80
    assert "times as long as its text should take" in told["doubt"]
    assert events[-1].report["warning"] == f"Turn 1 may have gone wrong: {told['doubt']}."


def test_the_next_turn_hears_the_take_that_is_kept(voices):
    """The second attempt is kept and the third was last: what follows is as if it had never been."""
    script = f"A: {TEXT}\nA: Very well."
    session, _ = spoken(lasting(90, 80, 85, 12), voices, script, live=False)
    session.rest()
    list(session.redo(lasting(12), 1, seed=session.turns[1].take.seed, live=False))
    assert len(session.turns[1].takes) == 1, "the same codes, read in again from what was kept"


def test_what_somebody_heard_is_marked_and_not_said_again(voices):
    session, events = spoken(lasting(80, 12), voices)
    assert len(session.turns[0].takes) == 1 and session.turns[0].take.again == 0
    assert "times as long" in session.turns[0].take.doubt
    assert sum(len(event.audio) for event in events if isinstance(event, TurnChunk)) == 80 * FRAME_SIZE


def test_where_nobody_listens_yet_sound_is_given_once_it_is_right(voices):
    session, events = spoken(lasting(80, 12), voices, held=True)
    (chunk,) = [event.audio for event in events if isinstance(event, TurnChunk)]
    assert len(chunk) == 12 * FRAME_SIZE and session.turns[0].take.again == 1


def test_a_turn_without_any_sound_is_tried_again_even_while_somebody_listens(voices):
    session, events = spoken(lasting(0, 12), voices)
    assert len(session.turns[0].take.codes) == 12 and session.turns[0].take.again == 1
    assert sum(len(event.audio) for event in events if isinstance(event, TurnChunk)) == 12 * FRAME_SIZE


def test_a_take_that_was_asked_for_by_its_seed_is_as_it_is(voices):
    session, _ = spoken(lasting(12), voices, live=False)
    list(session.redo(lasting(80, 12), 0, seed=5, live=False))
    assert len(session.turns[0].take.codes) == 80 and session.turns[0].take.again == 0


def test_of_several_takes_that_are_all_wrong_one_more_is_drawn(voices):
    session, _ = spoken(lasting(80, 12), voices, live=False, takes=2)
    assert session.turns[0].take.again == 1 and len(session.turns[0].takes) == 3
    assert len(session.turns[0].take.codes) == 12


def test_a_recogniser_that_listens_makes_it_try_again(voices):
    heard = []
    judges = Judges(lambda audio, text: heard.append(text) or (0.9 if len(heard) == 1 else 0.0))
    script = "A: There are six words in this."
    session, _ = spoken(lasting(27), voices, script, live=False, judges=judges)
    assert heard == ["There are six words in this."] * 2
    assert session.turns[0].take.again == 1 and not session.turns[0].take.doubt


def test_a_long_turn_is_several_pieces_with_one_sound_and_opens_again(voices, tmp_path):
    generator = lasting(20)
    script = "A: [pause 0.5s] I left the house. [pause 1s] Then it was late, and I came home.\nA: Very well, thank you."
    session, events = spoken(generator, voices, script)
    first = session.turns[0].take
    assert [piece.text for piece in first.pieces] == ["", "I left the house.", "Then it was late, and I came home."]
    told = events[-1].report["turns"][0]
    assert (told["pieces"], told["paused"], told["frames"]) == (2, 1.5, 40)
    assert told["frames"] * 0.08 == pytest.approx(told["end"] - told["start"] + told["trimmed"] - told["paused"])
    whole = session.whole(generator)
    assert not session.sound(generator, 0)[: len(silence(0.5))].any()
    save_project(tmp_path / "one.csm", session)
    opened = open_project(tmp_path / "one.csm", tmp_path, generator)
    assert opened.turns[0].take.pieces == first.pieces
    assert torch.equal(opened.whole(generator), whole) and opened.first_open is None
    for one in (session, opened):
        list(one.redo(generator, 1, seed=9, live=False))
    assert torch.equal(session.turns[1].take.codes, opened.turns[1].take.codes)


def test_in_python_a_long_text_is_one_turn_that_can_be_rewound():
    generator = lasting(5)
    conversation = generator.conversation(seed=1)
    before = conversation.say("Good morning.", 0)
    used = conversation.positions_used
    text = "It was a fine day, and we went to the sea to swim. " * 6
    chunks = list(conversation.stream(text, 0))
    turn = conversation.turns[-1]
    assert len(conversation.turns) == 2 and len(turn.pieces) > 3
    assert torch.equal(torch.cat(chunks), turn.audio) and len(turn.codes) == 5 * len(turn.pieces)
    conversation.rewind(turn)
    assert conversation.turns == [before] and conversation.positions_used == used
    short = conversation.say(text, 0, max_audio_length_ms=600)
    assert len(short.codes) == 7 and short.state == "capped", "the longest length is that of the whole turn"


def test_no_empty_file_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("csm.load", lambda *given, **options: lasting(0))
    out = tmp_path / "out.wav"
    assert main(["say", "Hello there.", "--out", str(out)]) == 2
    assert "gave any sound" in capsys.readouterr().err and not out.exists()


def test_a_dictionary_and_pauses_come_in_from_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("csm.load", lambda *given, **options: lasting(12))
    (tmp_path / "words.txt").write_text("Łódź = woodge\n", encoding="utf-8")
    (tmp_path / "script.txt").write_text("A: In Łódź. [pause 1s] At last.\n", encoding="utf-8")
    (tmp_path / "loop.txt").write_text("a = b\nb = a\n", encoding="utf-8")
    given = ["generate", "--script", str(tmp_path / "script.txt"), "--out", str(tmp_path / "out.wav"), "--json", "-"]
    assert main([*given, "--dictionary", str(tmp_path / "words.txt")]) == 0
    (told,) = json.loads(capsys.readouterr().out)["turns"]
    assert told["words"] == "in woodge. at last." and told["paused"] == 1.0 and told["pieces"] == 2
    assert main([*given, "--dictionary", str(tmp_path / "loop.txt")]) == 2
    assert "never ends" in capsys.readouterr().err
