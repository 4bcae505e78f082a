"""A session: speak, redo, keep, edit, carry on, stop; with and without its cache; live sound; the position budget."""

import pickle
from dataclasses import replace

import pytest
import torch

from csm import InputError, watermark
from csm.audio import load_audio
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.events import Comparing, Performed, TurnChunk, TurnFinished, TurnStarted
from csm.conversation.parsing import parse_script
from csm.conversation.positions import positions
from csm.conversation.session import Session
from csm.settings import Settings
from csm.speech.voices import shipped_voices
from tests.small import SMALL_MIMI, end_after, small_generator

SCRIPT = "A: Hello there.\nB: How are you?\nA: Very well."
SHORT = Settings(seed=1, temperature=2.0, max_turn_seconds=0.48)  # 6 frames, drawn freely: seeds must differ


@pytest.fixture(scope="module")
def voices():
    shipped = list(shipped_voices().values())
    return {"A": shipped[0], "B": shipped[1]}


@pytest.fixture(scope="module")
def spoken(generator, voices):
    """A session that has spoken its three turns, pickled; `pickle.loads` gives each test one of its own."""
    session = made(voices)
    run(session.speak(generator, live=False))
    return pickle.dumps(session)


def made(voices, script=SCRIPT, settings=SHORT):
    return Session(parse_script(script), voices, settings)


def run(events):
    *_, last = events
    assert isinstance(last, Performed)
    return last


def codes_of(session):
    return [turn.take.codes for turn in session.turns]


def text_positions(generator, session, index):
    turn = session.turns[index]
    rows = generator.prompts.format.text(turn.text, session.slots[turn.speaker])
    return len(rows)


def test_redoing_a_turn_leaves_those_before_it_untouched_and_reads_only_its_own_text(generator, voices):
    session = made(voices)
    run(session.speak(generator, live=False))
    before, prefilled = codes_of(session), session.spent.prefilled
    run(session.redo(generator, 1, live=False))
    after = codes_of(session)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    assert session.spent.prefilled - prefilled == text_positions(generator, session, 1)
    assert session.turns[1].take.positions_prefilled == text_positions(generator, session, 1)
    assert [session.stale(index) for index in range(3)] == [False, False, True]
    assert session.first_open == 2
    assert [len(turn.takes) for turn in session.turns] == [1, 2, 1]
    run(session.speak(generator, start=2, live=False))
    assert session.first_open is None
    assert torch.equal(codes_of(session)[1], after[1]) and not torch.equal(codes_of(session)[2], after[2])
    assert session.turns[2].take.positions_prefilled == text_positions(generator, session, 2)


def test_a_session_without_its_cache_reads_the_codes_in_again_and_goes_on_as_with_it(generator, voices, spoken):
    with_cache = made(voices)
    run(with_cache.speak(generator, live=False))
    without = pickle.loads(spoken)
    for session in (with_cache, without):
        run(session.redo(generator, 2, live=False))
    assert torch.equal(with_cache.turns[2].take.codes, without.turns[2].take.codes)
    assert with_cache.turns[2].take.positions_prefilled < 30 < without.turns[2].take.positions_prefilled


def test_a_session_that_rested_reads_everything_in_again(generator, voices):
    session = made(voices, "A: Hello there.\nB: How are you?")
    run(session.speak(generator, live=False))
    session.rest()
    run(session.redo(generator, 1, seed=session.turns[1].take.seed, live=False))
    assert len(session.turns[1].takes) == 1
    assert session.turns[1].take.positions_prefilled > session.turns[0].take.positions_prefilled


def test_keeping_the_earlier_take_makes_what_followed_fit_again(generator, spoken):
    session = pickle.loads(spoken)
    first = codes_of(session)
    run(session.redo(generator, 0, live=False))
    assert session.stale(1) and session.stale(2)
    session.keep(0, 0)
    assert not any(session.stale(index) for index in range(3))
    run(session.redo(generator, 2, seed=session.turns[2].take.seed, live=False))
    assert torch.equal(codes_of(session)[2], first[2])
    assert len(session.turns[2].takes) == 1  # the same codes again are no further take
    with pytest.raises(InputError, match="no take 9"):
        session.keep(0, 8)


def test_the_same_script_spoken_again_gives_the_same_takes(generator, spoken):
    session = pickle.loads(spoken)
    before = codes_of(session)
    run(session.speak(generator, live=False))
    assert all(torch.equal(old, new) for old, new in zip(before, codes_of(session), strict=True))


def test_an_edited_turn_waits_and_what_follows_is_stale(generator, spoken):
    session = pickle.loads(spoken)
    session.edit(1, text="Who are  you?")
    assert [turn.status for turn in session.turns] == ["capped", "waiting", "capped"]
    assert session.turns[1].text == "Who are you?" and session.first_open == 1 and session.stale(2)
    with pytest.raises(InputError, match="Turn 2 has not been spoken yet"):
        run(session.redo(generator, 2))
    session.edit(1, text="How are you?")
    assert session.first_open is None
    session.edit(1, text="Who are you?")
    session.keep(1, 0)
    assert session.turns[1].text == "How are you?"
    with pytest.raises(InputError, match="nothing to say"):
        session.edit(0, text=" ... ")


def test_a_changed_script_keeps_the_takes_of_what_stayed(spoken):
    session = pickle.loads(spoken)
    kept = session.turns[1]
    session.rewrite(parse_script("A: Hello you.\nB: How are you?\nB: Well?\nA: Very well."))
    assert [turn.status for turn in session.turns] == ["waiting", "capped", "waiting", "capped"]
    assert session.turns[1] is kept


@pytest.mark.parametrize("way", ["script", "rename"])
def test_a_renamed_speaker_keeps_number_voice_and_takes(way, generator, spoken):
    session = pickle.loads(spoken)
    before, voice, slots = codes_of(session), session.voices["A"], dict(session.slots)
    if way == "script":
        session.rewrite(parse_script(SCRIPT.replace("A:", "Anna:")))
    else:
        session.rename("A", "Anna")
    assert [turn.speaker for turn in session.turns] == ["Anna", "B", "Anna"]
    assert session.voices["Anna"] == voice and "A" not in session.voices
    assert session.slots == {"Anna": slots["A"], "B": slots["B"]}
    assert session.first_open is None and not any(session.stale(index) for index in range(3))
    run(session.redo(generator, 2, live=False))
    assert torch.equal(codes_of(session)[1], before[1])


def test_a_renamed_speaker_keeps_the_takes_of_lines_that_stayed_when_others_are_edited(spoken):
    session = pickle.loads(spoken)
    session.rewrite(parse_script("Anna: Hello there.\nB: Who are you?\nAnna: Very well.\nCid: Hi."))
    assert [turn.status for turn in session.turns] == ["capped", "waiting", "capped", "waiting"]


def test_two_speakers_that_become_one_are_no_renaming(spoken):
    session = pickle.loads(spoken)
    session.rewrite(parse_script("C: Hello there.\nC: How are you?\nC: Very well."))
    assert [turn.status for turn in session.turns] == ["waiting"] * 3


@pytest.mark.parametrize("renamed,words", [("B", "already"), (" ", "no new name")])
def test_a_name_that_cannot_be_given_is_refused_in_one_sentence(renamed, words, spoken):
    session = pickle.loads(spoken)
    with pytest.raises(InputError, match=words):
        session.rename("A", renamed)
    with pytest.raises(InputError, match="no speaker Z"):
        session.rename("Z", "Y")


@pytest.mark.parametrize("change", [dict(seed=2), dict(temperature=0.5), dict(topk=3)])
def test_takes_drawn_with_other_settings_are_known_and_not_stale(change, generator, spoken):
    session = pickle.loads(spoken)
    assert not any(session.other_settings(index) for index in range(3))
    session.settings = replace(session.settings, **change)
    assert all(session.other_settings(index) for index in range(3))
    assert session.first_open is None  # what follows them heard them: nothing has to be spoken again
    run(session.redo(generator, 1, live=False))
    report = session.report(generator)["turns"]
    assert [turn["other_settings"] for turn in report] == [True, False, True]
    session.settings = SHORT
    assert [session.other_settings(index) for index in range(3)] == [False, True, False]


def test_a_take_with_a_seed_of_its_own_does_not_depend_on_the_seed_that_is_set(generator, spoken):
    session = pickle.loads(spoken)
    run(session.redo(generator, 2, seed=77, live=False))
    session.settings = replace(session.settings, seed=5, max_turn_seconds=0.8)
    assert [session.other_settings(index) for index in range(3)] == [True, True, False]


def test_before_its_first_frame_every_turn_of_a_long_script_only_reads_its_own_text(voices, monkeypatch):
    generator, calls = small_generator(max_positions=2_048), []
    for name in ("prefill", "step"):
        real = getattr(generator.engine, name)

        def counted(*arguments, name=name, real=real):
            calls.append((name, len(arguments[1]) if name == "prefill" else 1))
            return real(*arguments)

        monkeypatch.setattr(generator.engine, name, counted)
    encode = generator.codec.encode
    monkeypatch.setattr(generator.codec, "encode", lambda wave: calls.append(("encode", 1)) or encode(wave))
    session = made(voices, "\n".join(f"{'AB'[n % 2]}: Yes." for n in range(20)), replace(SHORT, max_turn_seconds=0.16))
    run(session.speak(generator, live=False))
    text = text_positions(generator, session, 0)
    later = calls[calls.index(("step", 1)) + 2 :]
    assert later == [("prefill", text), ("step", 1), ("step", 1)] * 19


def test_there_are_at_most_eight_speakers(generator, voices):
    names = [f"P{number}" for number in range(8)]
    session = Session(parse_script("\n".join(f"{name}: Hi." for name in names)), {name: voices["A"] for name in names})
    assert sorted(session.slots.values()) == list(range(8))
    with pytest.raises(InputError, match="8 speakers, and no more fit"):
        session.edit(0, speaker="Ninth")
    session.edit(0, speaker="P1")  # P0 is gone, and its number is free
    assert session.edit(1, speaker="Ninth").speaker == "Ninth"
    assert len(set(session.slots.values())) == len(session.speakers) == 8


def test_another_voice_makes_everything_stale(voices, spoken):
    session = pickle.loads(spoken)
    session.set_voice("B", voices["A"])
    assert all(session.stale(index) for index in range(3)) and session.first_open == 0


def test_stopping_keeps_what_was_made_and_stops_at_the_next_frame(generator, voices):
    session, asked = made(voices, settings=replace(SHORT, max_turn_seconds=4)), 0

    def stop():
        nonlocal asked
        asked += 1
        return asked > 5

    last = run(session.speak(generator, stop=stop, live=False))
    assert [turn.status for turn in session.turns] == ["stopped", "waiting", "waiting"]
    assert len(session.turns[0].take.codes) == 4
    assert len(last.audio) == session.turns[0].take.samples == 4 * FRAME_SIZE
    assert session.first_open == 1


def test_closing_the_iterator_keeps_what_was_made(generator, voices):
    session = made(voices, settings=replace(SHORT, max_turn_seconds=4))
    events = session.speak(generator)
    assert isinstance(next(events), TurnStarted)
    assert session.turns[0].status == "speaking"
    next(event for event in events if isinstance(event, TurnChunk))
    with pytest.raises(InputError, match="being spoken"):
        session.edit(1, text="Other words.")
    events.close()
    assert [turn.status for turn in session.turns] == ["stopped", "waiting", "waiting"]
    made_sound = session.sound(generator, 0)
    assert torch.equal(made_sound, generator.decode(session.turns[0].take.codes)[: len(made_sound)])
    run(session.speak(generator, start=1, live=False))


@pytest.mark.parametrize("codec", ["light", "mimi"])
def test_sound_is_what_the_codes_decode_to_bit_for_bit(codec, voices):
    generator = small_generator(max_positions=600) if codec == "light" else small_generator(SMALL_MIMI, 600)
    session = made(voices, "A: Hello there.", replace(SHORT, max_turn_seconds=2.0))
    run(session.speak(generator, live=False))
    again = pickle.loads(pickle.dumps(session))
    assert torch.equal(session.sound(generator, 0), again.sound(generator, 0))
    assert torch.equal(session.whole(generator), again.whole(generator))


def test_takes_that_nobody_waits_for_any_more_keep_what_was_made(generator, voices, monkeypatch):
    monkeypatch.setattr("csm.conversation.session.NEWS_SECONDS", -1)
    session = Session(parse_script(SCRIPT), voices, replace(SHORT, takes=2))
    events = session.speak(generator)
    assert [type(next(events)) for _ in range(4)] == [TurnStarted, Comparing, Comparing, Comparing]
    events.close()
    assert [take.state for take in session.turns[0].takes] == ["stopped"] * 2
    assert [len(take.codes) for take in session.turns[0].takes] == [3, 3]
    assert not session.turns[1].takes and session.first_open == 1


def test_takes_sampled_in_one_batch_are_those_that_their_seeds_give_alone(generator, voices):
    session = made(voices, "A: Hello there.", replace(SHORT, takes=3))
    run(session.speak(generator, live=False))
    turn = session.turns[0]
    assert len(turn.takes) == 3 and turn.drawn == 3
    assert turn.take.reason.startswith(f"Take {turn.chosen + 1} of 3 was kept: ")
    for take in turn.takes:
        alone = made(voices, "A: Hello there.")
        run(alone.redo(generator, 0, seed=take.seed, live=False))
        assert torch.equal(alone.turns[0].take.codes, take.codes)


def test_the_turn_after_a_batch_hears_the_kept_take(generator, voices):
    batched = made(voices, settings=replace(SHORT, takes=2))
    run(batched.speak(generator, live=False))
    again = pickle.loads(pickle.dumps(batched))
    for session in (batched, again):
        run(session.redo(generator, 2, seed=5, live=False))
    assert torch.equal(batched.turns[2].take.codes, again.turns[2].take.codes)
    assert batched.turns[2].take.positions_prefilled == text_positions(generator, batched, 2)


def test_the_take_that_ends_by_itself_is_kept(voices):
    generator = small_generator(max_positions=600)
    sample = generator.engine.model.sample_frame
    steps = 0

    def second_take_ends(state, sampling, noise):
        nonlocal steps
        codes, steps = sample(state, sampling, noise), steps + 1
        codes[:, 0].clamp_min_(1)
        if steps == 6:
            codes[1] = 0
        return codes

    generator.engine.model.sample_frame = second_take_ends
    session = made(voices, "A: Hello there.", replace(SHORT, takes=3))
    run(session.speak(generator, live=False))
    turn = session.turns[0]
    assert turn.chosen == 1 and [take.state for take in turn.takes] == ["capped", "ended", "capped"]
    assert "it ended by itself and the next best did not" in turn.take.reason
    assert len(turn.take.codes) == 5 and not turn.take.codes.eq(0).all(dim=1).any()


def test_live_chunks_come_before_the_turn_is_done_and_add_up_to_it(generator, voices):
    session = made(voices, "A: Hello there.", replace(SHORT, max_turn_seconds=1.6))
    events = list(session.speak(generator))
    chunks = [event.audio for event in events if isinstance(event, TurnChunk)]
    assert [type(event) for event in events] == [TurnStarted, *[TurnChunk] * len(chunks), TurnFinished, Performed]
    assert len(chunks) > 1 and sum(map(len, chunks)) == 20 * FRAME_SIZE


def test_sound_is_marked_while_it_is_made_without_a_join():
    wave = load_audio(next(iter(shipped_voices().values())).path)[: 4 * SAMPLE_RATE]
    live, once = watermark.LiveMark(), watermark.LiveMark()
    pieces = [live.push(piece) for piece in wave.split([1920, 3840, 7680, 15360, 777, *[9_000] * 7, 3423])]
    joined = torch.cat([*pieces, live.flush()])
    whole = torch.cat([once.push(wave), once.flush()])
    assert len(joined) == len(whole) == len(wave)
    assert not len(pieces[0]) and len(pieces[3])
    assert float((joined - whole).abs().max()) < 2e-3 * float(whole.abs().max())
    assert watermark.detect(joined).marked


def test_events_bring_a_session_in_another_process_up_to_date(generator, voices):
    """What ZeroGPU does: the work is done by a copy, and what comes back is pickled."""
    here, there = made(voices), pickle.loads(pickle.dumps(made(voices)))
    for event in there.speak(generator):
        here.apply(pickle.loads(pickle.dumps(event)))
    assert [turn.status for turn in here.turns] == ["capped"] * 3 and here.first_open is None
    assert torch.equal(here.whole(None), there.whole(generator))  # no model is needed to hear it
    assert here.report(generator) == there.report(generator)


def test_two_sessions_at_once_do_not_mix(generator, voices):
    alone = made(voices), made(voices, "A: Something else.\nB: Is being said.\nA: Over here.")
    for session in alone:
        run(session.speak(generator, live=False))
    together = made(voices), made(voices, "A: Something else.\nB: Is being said.\nA: Over here.")
    for _ in zip(*(session.speak(generator, live=False) for session in together)):
        pass
    for one, other in zip(alone, together):
        assert all(torch.equal(a, b) for a, b in zip(codes_of(one), codes_of(other), strict=True))


def test_the_report_is_exact_to_the_sample(generator, voices, monkeypatch):
    generator = small_generator(max_positions=600)
    end_after(generator, 6)

    class Fading:
        level = 0.3

        def push(self, codes):
            level, self.level = self.level, 0.0
            return level * torch.sin(torch.arange(len(codes) * FRAME_SIZE) / 5)

        def flush(self):
            return torch.zeros(0)

    monkeypatch.setattr(generator.codec, "stream", lambda speaker: Fading(), raising=False)
    session = made(voices)
    report = run(session.speak(generator, live=False)).report
    samples = FRAME_SIZE + int(0.15 * SAMPLE_RATE)
    assert abs(session.turns[0].take.samples - samples) <= 1  # the first frame sounds, the others are silent
    for index, (turn, span) in enumerate(zip(report["turns"], session.spans(), strict=True)):
        assert (round(turn["start"] * SAMPLE_RATE), round(turn["end"] * SAMPLE_RATE)) == (span.start, span.end)
        assert turn["frames"] * 0.08 == pytest.approx(turn["end"] - turn["start"] + turn["trimmed"], abs=1e-5)
        assert turn["start"] == (report["turns"][index - 1]["end"] if index else 0)
    assert report["audio_seconds"] == report["turns"][-1]["end"]
    assert len(session.whole(generator)) == session.spans()[-1].end


def test_a_session_of_another_codec_is_refused_in_one_sentence(spoken):
    session, other = pickle.loads(spoken), small_generator(SMALL_MIMI, 600)
    for ask in (lambda: run(session.redo(other, 0)), lambda: session.whole(other)):
        with pytest.raises(InputError, match="spoken by small"):
            ask()


def test_the_position_budget_is_exact_for_what_is_spoken_and_estimated_for_what_waits(generator, voices):
    session = made(voices)
    waiting = positions(generator, session)
    assert set(waiting.prompts) == {"A", "B"} and waiting.limit == 600
    assert [turn.expected for turn in waiting.turns] == [True] * 3
    run(session.speak(generator, live=False))
    done = positions(generator, session)
    assert [turn.expected for turn in done.turns] == [False] * 3 and done.fits == 3
    assert done.total == session._memory.conversation.positions_used
    assert waiting.prompts == done.prompts
    assert [turn.text for turn in waiting.turns] == [turn.text for turn in done.turns]
    long = made(voices, "\n".join("A: This is one more line of a long script." for _ in range(20)))
    assert positions(generator, long).fits == 20 and 0 < positions(generator, long).slides[0] < 20


@pytest.mark.parametrize("call", ["redo", "speak", "keep", "edit", "clip"])
def test_a_turn_that_is_not_there_is_refused_in_one_sentence(call, generator, spoken):
    session = pickle.loads(spoken)
    asks = {
        "redo": lambda: run(session.redo(generator, 3)),
        "speak": lambda: run(session.speak(generator, 3)),
        "keep": lambda: session.keep(-1, 0),
        "edit": lambda: session.edit(7, text="Hello."),
        "clip": lambda: session.clip(generator, 3),
    }
    with pytest.raises(InputError, match="There is no turn"):
        asks[call]()
