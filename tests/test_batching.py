"""Continuous batching: what a stream says depends on nothing but itself, whoever else joins and leaves."""

import random
import subprocess
import sys
import threading
import time

import pytest
import torch

from csm.engine import Engine
from csm.engine.frames import Rows, Segment
from csm.errors import InputError
from csm.model.packed import packed
from csm.settings import Settings
from csm.speech import batching
from csm.speech.batching import LEAD, Batch, shared, usual_slots
from csm.speech.generator import ConversationFull
from csm.speech.loading import load
from tests.small import say_best, small_generator

TEXTS = ["Hello.", "How are you?", "I am well, and I have a lot to say today.", "Yes!", "Not now, thank you."]


def generator_that_ends(every=11, max_positions=256):
    """A random model whose turns end at frames that their own codes decide."""
    generator = small_generator(max_positions=max_positions)
    model = generator.engine.model
    sample = model.sample_frame

    def sample_frame(state, sampling, noise):
        codes = sample(state, sampling, noise)
        return codes.masked_fill(codes[:, :1] % every == 3, 0)

    model.sample_frame = sample_frame
    return generator


@pytest.fixture
def generator():
    return generator_that_ends()


def asked(number):
    """What stream `number` says, and how."""
    text, seed = TEXTS[number % len(TEXTS)], 100 + number
    options = dict(temperature=[None, 0.5, 1.5][number % 3], topk=[None, 1, 5, 40][number % 4])
    prompt = [Segment(1, "Before.", codes=torch.randint(0, 32, (3 + number, 4)).clamp_min(1))] if number % 2 else None
    return dict(text=text, speaker=number % 3, context=prompt, max_audio_length_ms=1600, seed=seed, **options)


@pytest.mark.parametrize("schedule", range(4))
def test_a_streams_codes_are_those_it_gives_alone_whoever_joins_and_leaves(generator, schedule):
    chance = random.Random(schedule)
    torch.manual_seed(schedule)
    batch = Batch(generator, slots=3, ahead=schedule % 2)
    coming = [asked(number) for number in range(8)]
    expected = [generator.generate_codes(**options) for options in coming]
    streams, given, left = [], {}, set()
    while len(streams) < len(coming) or batch.speaking or batch.waiting:
        if len(streams) < len(coming) and chance.random() < 0.4:
            streams.append(batch.join(**coming[len(streams)]))
        for stream, codes in batch.step().items():
            given.setdefault(stream, []).append(codes)
        if streams and chance.random() < 0.05:
            stream = chance.choice(streams)
            left.add(stream) if not stream.done else None
            batch.leave(stream)
        assert batch.speaking <= 3
    for stream, whole in zip(streams, expected):
        codes = torch.stack(given[stream]) if stream in given else torch.zeros(0, 4, dtype=torch.int64)
        assert torch.equal(codes, whole[: len(codes)])
        if stream in left:
            assert stream.state == "stopped"
        else:
            assert len(codes) == len(whole) and stream.state == ("capped" if len(whole) == 20 else "ended")
    assert {"ended", "capped"} & {stream.state for stream in streams}


def test_a_full_batch_queues_and_serves_first_come_first_served(generator):
    batch = Batch(generator, slots=2)
    streams = [batch.join("Hello.", 0, max_audio_length_ms=400, seed=seed) for seed in range(5)]
    assert (batch.speaking, batch.waiting) == (0, 5)
    batch.step()
    assert batch.waiting == 3 and [stream.state for stream in streams[2:]] == ["waiting"] * 3
    batch.leave(streams[3])
    batch.finish()
    assert streams[3].state == "stopped" and not len(streams[3].codes)
    assert all(stream.state in ("ended", "capped") for stream in streams if stream is not streams[3])


def test_one_bad_stream_disturbs_no_other(generator, monkeypatch):
    batch = Batch(generator, slots=3)
    good = batch.join("Hello.", 0, max_audio_length_ms=1600, seed=100)
    with pytest.raises(InputError, match="too long: its text takes"):
        batch.join("word " * 60, 0)
    with pytest.raises(ConversationFull, match="doesn't fit"):
        batch.join_rows(Rows.join([generator.turn_rows("word " * 40, 0)] * 2), 10)
    with pytest.raises(InputError, match="nothing to say"):
        batch.join("...", 0)
    with pytest.raises(InputError, match="at least 80 milliseconds"):
        batch.join("Hi.", 0, max_audio_length_ms=10)
    batch.step()
    prefill = generator.engine.prefill

    def out_of_memory(context, rows):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generator.engine, "prefill", out_of_memory)
    bad = batch.join("Hello.", 0, seed=1)
    batch.step()
    monkeypatch.setattr(generator.engine, "prefill", prefill)
    early = batch.join("Hello.", 0, seed=2)
    batch.step()
    batch.leave(early)
    batch.leave(early)
    batch.finish()
    assert (bad.state, str(bad.error), early.state) == ("failed", "out of memory", "stopped")
    expected = generator.generate_codes("Hello.", 0, max_audio_length_ms=1600, seed=100)
    assert torch.equal(good.codes, expected)


def test_a_text_of_several_pieces_is_one_stream_cut_as_everywhere():
    generator = load("nano", "cpu")
    options = dict(text="Yes. [pause 0.1s] Oh no.", speaker=0, max_audio_length_ms=4000, seed=3)
    expected = generator.generate_codes(**options)
    for ahead in (0, 2):
        batch = Batch(generator, slots=2, ahead=ahead)
        stream = batch.join(**options)
        batch.finish()
        assert stream.state == "ended" and stream.piece == 1, "both pieces were said to their end"
        assert torch.equal(stream.codes, expected)


def test_a_stream_that_may_use_the_whole_memory_stops_at_its_end():
    generator = small_generator(max_positions=64)
    batch = Batch(generator, slots=2, ahead=1)
    long, short = batch.join("Hello.", 0, seed=1), batch.join("Hi.", 1, max_audio_length_ms=400, seed=2)
    batch.finish()
    assert long.state == short.state == "capped" and len(short.codes) == 5
    assert len(generator.turn_rows("Hello.", 0)) + len(long.codes) + 1 == 64
    assert torch.equal(long.codes, generator.generate_codes("Hello.", 0, seed=1))


def test_while_some_speak_one_text_is_read_in_a_frame_and_in_order(generator, monkeypatch):
    read, prefill = [], generator.engine.prefill

    def counted(context, rows):
        read.append(len(rows))
        prefill(context, rows)

    monkeypatch.setattr(generator.engine, "prefill", counted)
    batch, texts = Batch(generator, slots=6), ["Yes.", "Or no.", "Perhaps.", "Who knows?", "Not everybody."]
    options = [dict(text=text, speaker=0, max_audio_length_ms=800, seed=number) for number, text in enumerate(texts)]
    lengths = [len(generator.turn_rows(text, 0)) for text in texts]
    streams = [batch.join(**each) for each in options[:2]]
    batch.step()
    assert read == lengths[:2]  # they held up nobody
    streams += [batch.join(**each) for each in options[2:]]
    for begun in (3, 4, 5):
        assert set(streams[: begun - 1]) <= set(batch.step()) | {stream for stream in streams if stream.done}
        assert read == lengths[:begun]
    batch.finish()
    for stream, each in zip(streams, options):
        assert torch.equal(stream.codes, generator.generate_codes(**each))


def test_eight_threads_share_a_batch_and_each_hears_its_own_conversation(generator):
    together = shared(generator, slots=3)

    def converse(speaking, number):
        conversation = speaking.conversation(seed=100 * number)
        return [conversation.say(TEXTS[(number + turn) % 5], turn, max_audio_length_ms=800) for turn in range(2)]

    found: dict = {}

    def run(number):
        found[number] = converse(together, number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    for number in range(8):
        for turn, expected in zip(found[number], converse(generator, number), strict=True):
            assert turn.state == expected.state and torch.equal(turn.codes, expected.codes)


def test_a_thread_that_stops_taking_frames_holds_up_nobody():
    generator = small_generator()
    together = shared(generator, slots=2)
    slow = together.stream("I am slow.", 0, max_audio_length_ms=8000, seed=1, marked=False)
    first = next(slow)
    options = dict(text="I am quick.", speaker=1, max_audio_length_ms=4000, seed=2)
    assert torch.equal(together.generate_codes(**options), generator.generate_codes(**options))
    (stream,) = together.engine._stepper._present
    assert stream.paused and len(stream.frames) == LEAD + 1
    assert sum(map(len, [first, *slow])) == 100 * 1920


def test_a_shared_turn_that_is_closed_early_frees_its_slot_and_the_conversation_goes_on():
    generator = small_generator()
    spoken = []
    for speaking in (generator, shared(generator, slots=1)):
        conversation = speaking.conversation(seed=1)
        stream = conversation.stream("Hello.", 0, max_audio_length_ms=4000)
        next(stream), next(stream)
        stream.close()
        spoken.append([turn.codes for turn in (*conversation.turns, conversation.say("Go on.", 0, 800))])
    assert all(torch.equal(*pair) for pair in zip(*spoken))


def test_what_was_spoken_ahead_of_a_thread_that_closes_its_turn_is_forgotten():
    generator = small_generator()
    together = shared(generator, slots=2)
    spoken = []
    for speaking in (generator, together):
        conversation = speaking.conversation(seed=1)
        stream = conversation.stream("Hello.", 0, max_audio_length_ms=600, marked=False)
        next(stream)
        speaking.generate_codes("Meanwhile.", 1, max_audio_length_ms=1600, seed=2)  # to the other's end, and beyond
        stream.close()
        spoken.append([turn.codes for turn in (*conversation.turns, conversation.say("Go on.", 0, 800))])
    assert len(spoken[0][0]) == 1 and all(torch.equal(*pair) for pair in zip(*spoken))


def spoken_by_threads(works):
    """What each of `works` returns or raises, each in a thread of its own, all at once."""
    found = {}

    def run(number, work):
        try:
            found[number] = work()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    return [found[number] for number in range(len(works))]


def test_in_int8_streams_side_by_side_have_the_codes_they_have_alone_and_their_sound_but_for_rounding():
    plain = small_generator()
    plain.engine = Engine(packed(plain.engine.model, "int8", keep=True))
    together = shared(plain, slots=4)
    options = [
        dict(text=TEXTS[number % 5], speaker=number, max_audio_length_ms=1600, seed=number) for number in range(6)
    ]
    codes = spoken_by_threads([lambda one=one: together.generate_codes(**one) for one in options])
    assert all(torch.equal(our, plain.generate_codes(**one)) for our, one in zip(codes, options))
    ours = spoken_by_threads([lambda one=one: together.generate(**one) for one in options])
    for our, one in zip(ours, options):  # where a pitch is on the border, rounding may give a step one harmonic more
        alone = plain.generate(**one)
        assert our.shape == alone.shape and (our - alone).norm() < 0.03 * alone.norm()


def test_takes_are_spoken_in_the_batch_that_others_speak_in(generator):
    together = shared(generator, slots=3)

    def compare(speaking):
        conversation = speaking.conversation(seed=1)
        takes = say_best(
            conversation, "How are you?", 0, [5, 6, 7, 8, 9], lambda turns: 3, Settings(max_turn_seconds=1.6)
        )
        return [*takes, conversation.say("Go on.", 1, 800)]

    def talk(speaking):
        conversation = speaking.conversation(seed=2)
        return [conversation.say(text, 0, 1600) for text in TEXTS]

    for ours, alone in zip(spoken_by_threads([lambda: compare(together), lambda: talk(together)]), (compare, talk)):
        for turn, expected in zip(ours, alone(generator), strict=True):
            assert turn.state == expected.state and torch.equal(turn.codes, expected.codes)


def test_takes_that_nobody_wants_any_more_stop_at_the_next_frame_even_while_they_wait_for_a_slot():
    generator = small_generator()
    together = shared(generator, slots=1)
    asked = iter([False] * 5)
    conversation = together.conversation(seed=1)
    takes = say_best(conversation, "Hello.", 0, [1, 2], lambda turns: 0, stop=lambda: next(asked, True))
    assert [turn.state for turn in takes] == ["stopped"] * 2 and len(takes[0].codes) < 20 and not len(takes[1].codes)
    speaking = together.stream("I have the only slot.", 0, max_audio_length_ms=8000)
    next(speaking)
    waiting = say_best(together.conversation(seed=2), "Hello.", 0, [1], lambda turns: 0, stop=lambda: True)
    assert waiting[0].state == "stopped" and not len(waiting[0].codes)
    speaking.close()


def test_a_thread_that_dies_in_the_middle_of_a_turn_frees_its_slot(generator):
    together = shared(generator, slots=1)

    def die():
        for _ in together.stream("I have a lot to say.", 0, max_audio_length_ms=8000, seed=1):
            raise RuntimeError("the client has gone")

    options = dict(text="Hello.", speaker=0, max_audio_length_ms=800, seed=2)
    died, *others = spoken_by_threads([die, *[lambda: together.generate_codes(**options)] * 2])
    assert str(died) == "the client has gone"
    assert all(torch.equal(codes, generator.generate_codes(**options)) for codes in others)


def test_what_fails_for_one_is_told_to_that_one_alone(generator, monkeypatch):
    together = shared(generator, slots=2)
    prefill = Engine.prefill

    def out_of_memory(self, context, rows):
        if len(rows) > 30:
            raise RuntimeError("out of memory")
        prefill(self, context, rows)

    monkeypatch.setattr(Engine, "prefill", out_of_memory)
    options = dict(speaker=0, max_audio_length_ms=800, seed=2)
    bad, good = spoken_by_threads(
        [lambda text=text: together.generate_codes(text, **options) for text in ("long " * 8, "Hello.")]
    )
    assert str(bad) == "out of memory" and torch.equal(good, generator.generate_codes("Hello.", **options))


def test_a_step_that_fails_ends_the_turns_it_was_for_and_no_later_one(generator, monkeypatch):
    together, model = shared(generator, slots=2), generator.engine.model
    sample, broken = model.sample_frame, []

    def sample_frame(state, sampling, noise):
        if not broken:
            broken.append(True)
            raise RuntimeError("the device is lost")
        return sample(state, sampling, noise)

    options = dict(text="Hello.", speaker=0, max_audio_length_ms=800, seed=2)
    monkeypatch.setattr(model, "sample_frame", sample_frame)
    with pytest.raises(RuntimeError, match="the device is lost"):
        together.generate_codes(**options)
    assert torch.equal(together.generate_codes(**options), generator.generate_codes(**options))


def test_texts_are_read_in_one_after_the_other_beside_the_frames(generator, monkeypatch):
    reading, most, read = [], [], Engine._read

    def counted(self, context, rows):
        reading.append(1)
        most.append(len(reading))
        read(self, context, rows)
        reading.pop()

    monkeypatch.setattr(Engine, "_read", counted)
    together = shared(generator, slots=4)
    options = dict(speaker=0, max_audio_length_ms=800, seed=2)
    spoken_by_threads([lambda text=text: list(together.stream(text, **options)) for text in TEXTS * 2])
    assert len(most) >= 10 and max(most) == 1


def test_the_stepping_thread_ends_when_nobody_has_spoken_for_a_while(monkeypatch):
    monkeypatch.setattr(batching, "IDLE_SECONDS", 0.01)
    together = shared(small_generator(), slots=2)
    for _ in range(2):
        assert len(together.generate("Hello.", 0, max_audio_length_ms=400, seed=1)) == 5 * 1920
        while together.engine._stepper._thread is not None:
            time.sleep(0.01)


def test_slots_are_chosen_by_device_and_the_environment_overrides(generator, monkeypatch):
    monkeypatch.delenv("CSM_SLOTS", raising=False)
    assert usual_slots(generator) == 8
    monkeypatch.setenv("CSM_SLOTS", "3")
    assert usual_slots(generator) == 3
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv("CSM_SLOTS", wrong)
        with pytest.raises(InputError, match="whole number from 1"):
            usual_slots(generator)


def test_a_program_may_end_in_the_middle_of_a_turn():
    program = """
import csm
from csm.speech.batching import shared

spoken = shared(csm.load("nano", device="cpu"), 2).stream("Hello, and a good morning to everybody.", 0, seed=1)
print(len(next(spoken)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
