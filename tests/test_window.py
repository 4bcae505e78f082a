"""Past the window: the oldest turns leave, the prompts stay, and a script of any length is read out to its end."""

import pickle
from dataclasses import replace

import pytest
import torch

import csm
from csm import InputError, Segment
from csm.conversation.events import Performed
from csm.conversation.parsing import parse_script
from csm.conversation.positions import positions
from csm.conversation.project import open_project, save_project
from csm.conversation.session import Session
from csm.engine.frames import Budget, room_for
from csm.settings import Settings
from csm.speech.generator import ConversationFull
from csm.speech.voices import find_voice
from tests.small import say_best, small_generator

WINDOW = 512
WORDS = "one two three four five six seven eight nine ten".split()
TEXTS = [f"This is line {WORDS[number % 10]} of the script." for number in range(60)]
FRAMES = dict(max_audio_length_ms=400, temperature=2.0)  # 5 frames
SETTINGS = Settings(seed=1, temperature=2.0, max_turn_seconds=0.4)


@pytest.fixture(scope="module")
def generator():
    return small_generator(max_positions=WINDOW)


@pytest.fixture(scope="module")
def voices():
    """One voice, with a short text, to leave some of the window."""
    return {"A": replace(find_voice("slt"), transcript="Hm.")}


def prompts(count=2):
    return [Segment(speaker, "Hum.", codes=torch.full((12, 4), 3 + speaker)) for speaker in range(count)]


def speak(conversation, texts):
    return [conversation.say(text, number % 2, **FRAMES) for number, text in enumerate(texts)]


def run(events):
    *_, last = events
    assert isinstance(last, Performed)
    return last


@pytest.fixture(scope="module")
def long_talk(generator):
    """A conversation of sixty turns, and what each of them found in the window."""
    conversation = generator.conversation(prompts(), seed=1)
    before = None
    found = []
    for number, text in enumerate(TEXTS):
        conversation.say(text, number % 2, **FRAMES)
        rows = conversation._context.cache.keys[:, :, :, : conversation._window.prompt_positions]
        before = rows.clone() if before is None else before
        found.append((conversation.positions_used, conversation._context.length, torch.equal(rows, before)))
    return conversation, found


def test_sixty_turns_are_spoken_and_positions_never_exceed_the_window(generator, long_talk):
    conversation, found = long_talk
    assert [turn.text for turn in conversation.turns] == TEXTS
    assert all(len(turn.codes) == 5 for turn in conversation.turns)
    assert sum(turn.positions for turn in conversation.turns) > 3 * WINDOW
    assert all(used == length <= WINDOW for used, length, _ in found)


def test_the_prompts_rows_are_still_the_first_after_every_slide(long_talk):
    conversation, found = long_talk
    assert len({turn.heard_from for turn in conversation.turns}) > 3
    assert all(same for *_, same in found)


def test_a_turn_after_a_slide_equals_that_of_a_fresh_conversation_with_the_turns_that_stayed(generator, long_talk):
    turns = long_talk[0].turns
    slides = [n for n in range(1, 60) if turns[n].heard_from > turns[n - 1].heard_from]
    for number in (slides[0], slides[0] + 1, slides[-1]):
        turn = turns[number]
        kept = [Segment(one.speaker, one.text, codes=one.codes) for one in turns[turn.heard_from : number]]
        fresh = generator.conversation([*prompts(), *kept], seed=0)
        assert torch.equal(fresh.say(turn.text, turn.speaker, seed=1 + number, **FRAMES).codes, turn.codes)


def test_a_slide_reads_the_turns_that_stay_once_more_and_other_turns_only_their_own_text(generator, long_talk):
    turns = long_talk[0].turns
    slides = 0
    for number in range(1, 60):
        turn = turns[number]
        text = len(generator.turn_rows(turn.text, turn.speaker))
        stayed = turns[turn.heard_from : number]
        if turn.heard_from > turns[number - 1].heard_from:
            slides += 1
            assert turn.positions_prefilled == text + sum(one.positions for one in stayed)
        else:
            assert turn.positions_prefilled == text
    assert 3 < slides < 25  # one in several turns, even in so small a window


def test_rewinding_to_before_a_slide_brings_back_what_was_heard_then(generator):
    conversation = generator.conversation(prompts(), seed=1)
    turns = speak(conversation, TEXTS[:24])
    slid = next(number for number, turn in enumerate(turns) if turn.heard_from)
    for number in (23, slid, 3):
        conversation.rewind(conversation.turns[number])
        assert len(conversation.turns) == number and conversation.positions_used <= WINDOW
        again = conversation.say(turns[number].text, number % 2, **FRAMES)
        assert torch.equal(again.codes, turns[number].codes) and again.heard_from == turns[number].heard_from


def test_rewinding_a_turn_that_slid_reads_only_its_own_text(generator):
    conversation = generator.conversation(prompts(), seed=1)
    turns = speak(conversation, TEXTS[:2])
    while not turns[-1].heard_from:
        turns += [conversation.say(TEXTS[0], 0, **FRAMES)]
    conversation.rewind(turns[-1])
    again = conversation.say(TEXTS[0], 0, **FRAMES)
    assert torch.equal(again.codes, turns[-1].codes)
    assert again.positions_prefilled == len(generator.turn_rows(TEXTS[0], 0))


def test_turns_that_are_taken_in_again_leave_where_they_left_when_they_were_spoken(generator, long_talk):
    turns = long_talk[0].turns[:30]
    again = generator.conversation(prompts(), seed=1)
    heard = [again.hear(turn.text, turn.speaker, turn.codes) for turn in turns[:-1]]
    assert [turn.heard_from for turn in heard] == [turn.heard_from for turn in turns[:-1]]
    assert again.positions_prefilled == 0
    last = again.say(turns[-1].text, turns[-1].speaker, **FRAMES)
    assert torch.equal(last.codes, turns[-1].codes)
    assert again.positions_prefilled <= WINDOW


def test_several_takes_slide_as_one_does(generator):
    alone, batched = (generator.conversation(prompts(), seed=1) for _ in range(2))
    for number, text in enumerate(TEXTS[:20]):
        turn = alone.say(text, 0, seed=number, **FRAMES)
        takes = say_best(batched, text, 0, [number, 99], lambda turns: 0, SETTINGS)
        assert torch.equal(takes[0].codes, turn.codes) and takes[0].heard_from == turn.heard_from
    assert alone.turns[-1].heard_from > 0


def test_a_choice_that_fails_leaves_the_conversation_as_it_was(generator, long_talk):
    turns = long_talk[0].turns
    slid = next(number for number in range(1, 60) if turns[number].heard_from)
    conversation = generator.conversation(prompts(), seed=1)
    speak(conversation, TEXTS[:slid])
    with pytest.raises(ZeroDivisionError):
        say_best(conversation, TEXTS[slid], 0, [1, 2], lambda turns: 1 // 0, SETTINGS)
    assert torch.equal(conversation.say(TEXTS[slid], slid % 2, **FRAMES).codes, turns[slid].codes)


def test_a_conversation_that_keeps_all_its_turns_refuses_the_one_that_no_longer_fits(generator):
    conversation = generator.conversation(prompts(), seed=1, slide=False)
    with pytest.raises(ConversationFull, match=r"no longer fits: \d+ of 512 positions are in use"):
        speak(conversation, TEXTS)
    spoken = len(conversation.turns)
    assert 5 < spoken < 20 and all(turn.heard_from == 0 for turn in conversation.turns)
    with pytest.raises(ConversationFull, match="no longer fits"):
        [conversation.hear(turn.text, turn.speaker, turn.codes) for turn in conversation.turns[:2]]


def test_a_turn_that_does_not_fit_even_alone_is_refused_and_changes_nothing():
    conversation = small_generator(max_positions=240).conversation(prompts(), seed=1)
    speak(conversation, TEXTS[:3])
    used = conversation.positions_used
    with pytest.raises(InputError, match="too long: its text takes 2.. positions.*split it into several turns"):
        conversation.say("words " * 33, 0)
    assert conversation.positions_used == used and len(conversation.turns) == 3


@pytest.mark.parametrize(
    "turns,needed,leave",
    [
        ([100] * 5, 300, 0),  # all fits
        ([100] * 8, 101, 4),  # the newest half stays
        ([100] * 8, 700, 6),  # less than half where the next turn needs it
        ([100, 600], 201, 1),  # the last stays although it is longer than half
        ([100, 600], 400, 2),  # unless there is no room for it
        ([], 900, 0),
    ],
)
def test_how_many_turns_leave(turns, needed, leave):
    assert Budget(1_000).leaving(100, turns, needed) == leave


def test_past_the_window_a_position_costs_about_one_more_of_prefill():
    budget, heard, read, spoken = Budget(2_048), [], 0, 0
    for _ in range(1_000):
        if leaving := budget.leaving(330, heard, room_for("x" * 100, 25)):
            heard = heard[leaving:]
            read += sum(heard)
        heard.append(25 + 100 + 1)
        spoken += heard[-1]
    assert 0.5 < read / spoken < 1.3


def script(count):
    return parse_script("\n".join(f"A: {text}" for text in TEXTS[:count]))


@pytest.fixture(scope="module")
def spoken(generator, voices):
    session = Session(script(30), voices, SETTINGS)
    last = run(session.speak(generator, live=False))
    return pickle.dumps(session), last.report


def test_a_script_longer_than_the_window_is_read_out_and_one_sentence_says_what_left(spoken):
    report = spoken[1]
    assert len(report["turns"]) == 30 and report["window_slides"] > 1
    heard = [turn["heard_from"] for turn in report["turns"]]
    slides = [n + 1 for n in range(1, 30) if heard[n] > heard[n - 1]]
    assert heard == sorted(heard) and len(slides) == report["window_slides"]
    assert report["notice"].count(".") == 1
    assert f"turns {', '.join(map(str, slides[:-1]))} and {slides[-1]} the oldest turns left" in report["notice"]
    assert report["positions_prefilled"] == sum(turn["positions_prefilled"] for turn in report["turns"])


def test_a_script_that_fits_has_no_notice(generator, voices):
    report = run(Session(script(3), voices, SETTINGS).speak(generator, live=False)).report
    assert "notice" not in report and report["window_slides"] == 0


def test_a_project_longer_than_the_window_reopens_and_goes_on_as_the_session_would_have(generator, spoken, tmp_path):
    session = pickle.loads(spoken[0])
    save_project(tmp_path / "long.csm", session)
    again = open_project(tmp_path / "long.csm", tmp_path, generator)
    assert torch.equal(again.whole(generator), session.whole(generator))
    assert again.report(generator) == session.report(generator) and again.slides == session.slides
    for index in (29, 4):
        for one in (session, again):
            run(one.redo(generator, index, live=False))
        assert torch.equal(session.turns[index].take.codes, again.turns[index].take.codes)
        assert session.turns[index].take.heard_from == again.turns[index].take.heard_from
    for one in (session, again):
        report = run(one.speak(generator, start=5, live=False)).report
        assert len(report["turns"]) == 30 and one.first_open is None
    assert torch.equal(session.whole(generator), again.whole(generator))


def test_redoing_a_turn_reads_only_its_own_text_although_others_have_left(generator, voices):
    session = Session(script(20), voices, SETTINGS)
    run(session.speak(generator, live=False))
    last = run(session.redo(generator, 19, live=False))
    assert session.turns[19].take.positions_prefilled == len(generator.turn_rows(TEXTS[19], 0))
    assert ("notice" in last.report) == (19 in session.slides)


def test_the_meter_foretells_where_turns_leave(generator, voices, spoken):
    waiting = positions(generator, Session(script(30), voices, SETTINGS))
    session = pickle.loads(spoken[0])
    done = positions(generator, session)
    assert done.slides == session.slides and done.fits == 30 and done.total > done.limit
    assert waiting.slides == done.slides  # five frames each, which is what is expected at most
    assert not done.too_long
    shorter = positions(generator, Session(script(3), voices, SETTINGS))
    assert (shorter.fits, shorter.slides) == (3, [])


def test_a_turn_too_long_for_the_window_is_refused_before_anything_is_spoken(generator, voices):
    lines = parse_script(f"A: {TEXTS[0]}\nA: {'words ' * 33}\nA: {TEXTS[1]}")
    session = Session(lines, voices, SETTINGS)
    prompts = sum(positions(generator, session).prompts.values())
    generator = small_generator(max_positions=prompts + 180)
    count = positions(generator, session)
    assert (count.too_long, count.fits) == ([1], 1)
    with pytest.raises(InputError, match="^Turn 2 is too long: .* split it into several turns"):
        run(session.speak(generator, live=False))
    assert session.turns[0].status == "waiting"
    run(session.redo(generator, 0, live=False))  # the others are none of its business


def test_the_embedded_model_reads_a_script_longer_than_its_window():
    generator = csm.load("nano", device="cpu")
    line = "The road went on and on between the fields, past the mill and over the bridge, until it came to the sea"
    texts = [f"{line}, said {WORDS[number % 10]}." for number in range(12)]
    lines = parse_script("\n".join(f"{'AB'[number % 2]}: {text}" for number, text in enumerate(texts)))
    voices = {"A": find_voice("slt"), "B": find_voice("bdl")}
    session = Session(lines, voices, Settings(seed=3, max_turn_seconds=0.8))
    report = run(session.speak(generator, live=False)).report
    assert len(report["turns"]) == 12 and all(turn["frames"] for turn in report["turns"])
    assert report["window_slides"] >= 1 and "2048 positions" in report["notice"]
    assert session._memory.conversation.positions_used <= 2_048
