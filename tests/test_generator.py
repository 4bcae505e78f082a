"""Conversations: streaming, seeds, growing context, rewinding, budgets."""

import threading

import pytest
import torch

from csm import InputError, Segment
from csm.config import FRAME_SIZE
from csm.recent import Recent
from csm.settings import Settings
from tests.small import SMALL_MIMI, end_after, say_best, small_generator


@pytest.fixture(params=["light", "mimi"])
def generator(request):
    return small_generator() if request.param == "light" else small_generator(SMALL_MIMI)


@pytest.fixture
def light():
    return small_generator()


def text_positions(generator, text, speaker=0):
    return len(generator.prompts.format.text(text, speaker))


def prompt(generator, seconds=1.0, speaker=0):
    time = torch.arange(int(24_000 * seconds)) / 24_000
    return Segment(speaker, "Hum.", audio=0.3 * torch.sin(2 * torch.pi * 220 * time))


def test_streamed_equals_whole(generator):
    options = dict(text="Hello.", speaker=0, context=[prompt(generator)], max_audio_length_ms=2000, seed=7)
    chunks = list(generator.stream(**options))
    assert len(chunks) > 2
    assert torch.equal(torch.cat(chunks), generator.generate(**options))


def test_streamed_sound_equals_decoding_the_codes_at_once(generator):
    options = dict(text="Hello.", speaker=0, max_audio_length_ms=2000, seed=7)
    codes = generator.generate_codes(**options)
    audio = generator.generate(**options, marked=False)
    assert codes.shape == (25, 4) and codes.dtype == torch.int64
    assert audio.shape == (25 * FRAME_SIZE,) and audio.dtype == torch.float32
    # A chunk's pitch is rounded differently from a whole clip's: 60 dB below the peak at the highest harmonics.
    assert torch.allclose(generator.codec.decode(codes), audio, atol=5e-3 * float(audio.abs().max()))


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(light):
    first, second, other = (light.generate("Hi.", 0, max_audio_length_ms=1000, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_second_turn_prefills_only_its_own_text(light):
    conversation = light.conversation([prompt(light)], seed=1)
    first = conversation.say("Hello there.", 0, max_audio_length_ms=800)
    second = conversation.say("How are you?", 1, max_audio_length_ms=800)
    prompt_positions = text_positions(light, "Hum.") + 13 + 1
    assert first.positions_prefilled == prompt_positions + text_positions(light, "Hello there.")
    assert second.positions_prefilled == text_positions(light, "How are you?")
    frames = len(first.codes) + len(second.codes)
    assert conversation.positions_used == conversation.positions_prefilled + frames + 2


def test_a_growing_context_equals_one_built_from_its_codes(light):
    """What the second turn hears is the first turn's codes: giving them as context gives the same second turn."""
    conversation = light.conversation([prompt(light)], seed=1)
    first = conversation.say("Hello there.", 0, max_audio_length_ms=800)
    second = conversation.say("How are you?", 1, max_audio_length_ms=800)
    history = [prompt(light), Segment(0, "Hello there.", codes=first.codes)]
    again = light.conversation(history).say("How are you?", 1, max_audio_length_ms=800, seed=2)
    assert torch.equal(again.codes, second.codes)


def test_later_turns_depend_on_what_was_said(light):
    spoken = []
    for opening in ("Hello there.", "Go away."):
        conversation = light.conversation(seed=1)
        conversation.say(opening, 0, max_audio_length_ms=800)
        spoken.append(conversation.say("How are you?", 1, max_audio_length_ms=800).codes)
    assert not torch.equal(*spoken)


def test_a_rewound_turn_costs_its_text_and_comes_back_the_same(light):
    conversation = light.conversation([prompt(light)], seed=1)
    first = conversation.say("Hello there.", 0, max_audio_length_ms=800)
    second = conversation.say("How are you?", 1, max_audio_length_ms=800)
    conversation.rewind(second)
    assert conversation.turns == [first]
    again = conversation.say("How are you?", 1, max_audio_length_ms=800)
    assert torch.equal(again.codes, second.codes)
    assert again.positions_prefilled == text_positions(light, "How are you?")
    conversation.rewind(first)
    redone = conversation.say("Hello there.", 0, max_audio_length_ms=800)
    assert torch.equal(redone.codes, first.codes)
    assert redone.positions_prefilled == text_positions(light, "Hello there.")


def test_another_take_differs(light):
    conversation = light.conversation(seed=1)
    first = conversation.say("Hello there.", 0, max_audio_length_ms=800)
    conversation.rewind(first)
    assert not torch.equal(conversation.say("Hello there.", 0, max_audio_length_ms=800, seed=99).codes, first.codes)


def test_a_foreign_turn_cannot_be_rewound(light):
    turn = light.conversation(seed=1).say("Hi.", 0, max_audio_length_ms=400)
    with pytest.raises(ValueError, match="not part"):
        light.conversation().rewind(turn)


def test_two_conversations_at_once_do_not_mix(generator):
    def speak(seed, text, found):
        conversation = generator.conversation(seed=seed)
        found[seed] = [conversation.say(text, 0, max_audio_length_ms=800).audio for _ in range(2)]

    alone: dict = {}
    speak(1, "One.", alone)
    speak(2, "Two.", alone)
    together: dict = {}
    threads = [threading.Thread(target=speak, args=(*job, together)) for job in ((1, "One."), (2, "Two."))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for seed in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(alone[seed], together[seed], strict=True))


def test_interleaved_streams_do_not_mix(generator):
    options = dict(speaker=0, max_audio_length_ms=1600)
    one = generator.stream("One.", seed=1, **options)
    two = generator.stream("Two.", seed=2, **options)
    pairs = list(zip(one, two, strict=True))
    assert torch.equal(torch.cat([a for a, _ in pairs]), generator.generate("One.", seed=1, **options))
    assert torch.equal(torch.cat([b for _, b in pairs]), generator.generate("Two.", seed=2, **options))


def test_a_turn_says_that_it_ended(light):
    end_after(light, 5)
    turn = light.conversation(seed=1).say("Hi.", 0)
    assert (turn.state, len(turn.codes), len(turn.audio)) == ("ended", 5, 5 * FRAME_SIZE)


def test_a_turn_says_that_it_was_capped(light):
    turn = light.conversation(seed=1).say("Hi.", 0, max_audio_length_ms=800)
    assert (turn.state, len(turn.codes)) == ("capped", 10)


def test_a_turn_says_that_it_was_stopped_and_keeps_what_was_made(light):
    conversation = light.conversation(seed=1)
    stream = conversation.stream("Hello.", 0, max_audio_length_ms=4000)
    heard = [next(stream), next(stream)]
    stream.close()
    turn = conversation.turns[-1]
    assert turn.state == "stopped"
    assert torch.equal(turn.audio, torch.cat(heard))
    assert conversation.say("Go on.", 0, max_audio_length_ms=400).state == "capped"


def test_the_zero_frame_as_the_very_first_frame_is_an_empty_turn(generator):
    end_after(generator, 0)
    conversation = generator.conversation(seed=1)
    turn = conversation.say("Hi.", 0)
    assert (turn.state, turn.codes.shape, turn.audio.shape) == ("ended", (0, 4), (0,))
    assert generator.generate("Hi.", 0).shape == (0,)
    assert list(generator.stream("Hi.", 0)) == []
    assert conversation.say("Again.", 0).state == "ended"


def test_codes_that_no_codec_knows_never_reach_it(generator):
    codes = torch.full((3, 4), 34)
    known = torch.full((3, 4), 31)
    assert torch.equal(generator.codec.decode(codes), generator.codec.decode(known))


def test_a_turn_that_fills_the_budget_is_capped_and_the_next_is_spoken_without_it():
    light = small_generator(max_positions=64)
    conversation = light.conversation(seed=1)
    turn = conversation.say("Hello.", 0)
    assert turn.state == "capped"
    assert conversation.positions_used == 64
    assert conversation.say("More.", 0, max_audio_length_ms=400).heard_from == 1
    assert conversation.positions_used < 64


@pytest.mark.parametrize("ms,frames", [(80, 1), (159, 1), (2_320, 29), (4_560, 57), (20_560, 257)])
def test_the_longest_length_counts_whole_frames_whatever_its_float_looks_like(ms, frames):
    light = small_generator(max_positions=300)
    assert len(light.generate_codes("Hi.", 0, max_audio_length_ms=ms, seed=1)) == frames


def counting(generator, monkeypatch):
    encoded, encode = [], generator.codec.encode
    monkeypatch.setattr(generator.codec, "encode", lambda wave: encoded.append(len(wave)) or encode(wave))
    return encoded


def test_the_second_conversation_with_a_voice_encodes_nothing(generator, monkeypatch):
    encoded = counting(generator, monkeypatch)
    options = dict(max_audio_length_ms=400, seed=1)
    first, second = (generator.generate("Hello.", 0, [prompt(generator)], **options) for _ in range(2))
    assert len(encoded) == 1 and torch.equal(first, second)
    generator.generate("Hello.", 0, [prompt(generator, speaker=1)], **options)
    assert len(encoded) == 1  # who speaks is told by the text, not by the sound
    generator.generate("Hello.", 0, [prompt(generator, seconds=1.1)], **options)
    louder = prompt(generator)
    louder.audio = louder.audio * 1.001
    generator.generate("Hello.", 0, [louder], **options)
    assert len(encoded) == 3


def test_prompts_that_were_read_in_before_are_copied_and_give_the_same_samples(light, monkeypatch):
    other, options = small_generator(), dict(max_audio_length_ms=800, temperature=2.0, seed=1)
    first = light.conversation([prompt(light), prompt(light, speaker=1)], seed=1)
    turn = first.say("Hello there.", 0, **options)
    read, prefill = [], light.engine.prefill
    monkeypatch.setattr(light.engine, "prefill", lambda context, rows: read.append(len(rows)) or prefill(context, rows))
    second = light.conversation([prompt(light), prompt(light, speaker=1)], seed=1)
    again = second.say("Hello there.", 0, **options)
    assert read == [text_positions(light, "Hello there.")]
    fresh = other.conversation([prompt(light), prompt(light, speaker=1)], seed=1).say("Hello there.", 0, **options)
    assert torch.equal(turn.audio, again.audio) and torch.equal(turn.audio, fresh.audio)
    assert turn.positions_prefilled == again.positions_prefilled and first.positions_used == second.positions_used
    followed = [conversation.say("Go on.", 1, **options) for conversation in (first, second)]
    assert torch.equal(followed[0].audio, followed[1].audio)  # and neither wrote into what is remembered
    third = light.conversation([prompt(light, speaker=1), prompt(light)], seed=1).say("Hello there.", 0, **options)
    assert len(read) == 5 and not torch.equal(third.codes, turn.codes)


def test_copied_prompts_serve_takes_rewinding_and_a_second_thread(light):
    def speak(found):
        conversation = light.conversation([prompt(light)], seed=1)
        takes = say_best(conversation, "Hello.", 0, [1, 2], lambda turns: 1, Settings(max_turn_seconds=0.4))
        conversation.rewind(takes[1])
        found.append(conversation.say("Hello.", 0, max_audio_length_ms=400, seed=2).codes)

    found: list = []
    speak(found)
    threads = [threading.Thread(target=speak, args=(found,)) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 4 and all(torch.equal(found[0], codes) for codes in found)


def test_takes_have_the_codes_that_each_seed_gives_alone_and_the_chosen_one_is_gone_on_from(light):
    sample, begun = light.engine.model.sample_frame, len(light.turn_rows("Hello.", 0))

    def sample_frame(state, sampling, noise):  # turns end where their own codes say so
        codes = sample(state, sampling, noise)
        return codes.masked_fill(codes[:, :1] % 7 == 3, 0)

    light.engine.model.sample_frame = sample_frame
    options, settings = dict(max_audio_length_ms=1200), Settings(max_turn_seconds=1.2)
    alone = []
    for seed in (1, 2, 3, 4, 5):
        conversation = light.conversation(seed=9)
        turn = conversation.say("Hello.", 0, seed=seed, **options)
        alone.append((turn.state, turn.codes, conversation.say("Go on.", 1, **options).codes))
    assert {state for state, _, _ in alone} == {"ended", "capped"} and len({len(codes) for _, codes, _ in alone}) > 2
    for chosen in (0, 1, 2, 3, 4):
        conversation = light.conversation(seed=9)
        takes = say_best(conversation, "Hello.", 0, (1, 2, 3, 4, 5), lambda turns: chosen, settings)  # noqa: B023
        assert [take.state for take in takes] == [state for state, _, _ in alone]
        assert all(torch.equal(take.codes, codes) for take, (_, codes, _) in zip(takes, alone))
        assert conversation.positions_used == begun + len(takes[chosen].codes) + 1
        assert torch.equal(conversation.say("Go on.", 1, **options).codes, alone[chosen][2])


def test_takes_that_are_stopped_keep_what_they_have(light):
    asked = iter([False, False, False, True])
    conversation = light.conversation(seed=1)
    takes = say_best(conversation, "Hello.", 0, (1, 2), lambda turns: 0, stop=lambda: next(asked))
    assert [(take.state, len(take.codes)) for take in takes] == [("stopped", 3)] * 2
    none = say_best(light.conversation(seed=1), "Hello.", 0, (1, 2), lambda turns: 1, stop=lambda: True)
    assert [(take.state, tuple(take.codes.shape)) for take in none] == [("stopped", (0, 4))] * 2
    whole = light.conversation(seed=1).say("Hello.", 0, max_audio_length_ms=240, seed=1)
    assert torch.equal(takes[0].codes, whole.codes)


def test_a_prompts_text_is_made_into_ids_once(light, monkeypatch):
    encode, texts = light.tokenizer.encode, []
    monkeypatch.setattr(light.tokenizer, "encode", lambda text: texts.append(text) or encode(text))
    light.prompt_rows([prompt(light)])
    assert len(texts) == len(set(texts)) == 2  # the text, and its empty frame


def test_what_is_remembered_of_prompts_is_bounded(light):
    light.prompt_contexts = Recent(most=2, most_bytes=1 << 30)
    for seconds in (1.0, 1.1, 1.2, 1.3):
        light.generate_codes("Hi.", 0, [prompt(light, seconds)], max_audio_length_ms=80)
    assert len(light.prompt_contexts) == 2
    one = light.prompt_contexts.bytes // 2
    light.prompt_contexts = Recent(most=9, most_bytes=2 * one)
    for seconds in (1.0, 1.1, 1.2, 1.3):
        light.generate_codes("Hi.", 0, [prompt(light, seconds)], max_audio_length_ms=80)
    assert light.prompt_contexts.bytes <= 2 * one


def test_what_is_remembered_cannot_be_changed_from_outside(light):
    codes = light.segment_codes(prompt(light))
    kept = codes.clone()
    codes.zero_()
    assert torch.equal(light.segment_codes(prompt(light)), kept)


def test_remembered_codes_are_bounded_and_those_used_longest_ago_leave_first(light, monkeypatch):
    encoded = counting(light, monkeypatch)
    light.prompts.codes = Recent(most=2, most_bytes=1 << 20)
    one, two, three = (prompt(light, seconds) for seconds in (1.0, 1.1, 1.2))
    for segment in (one, two, one, three, one):
        light.segment_codes(segment)
    assert len(encoded) == 3 and len(light.prompts.codes) == 2
    light.segment_codes(two)
    assert len(encoded) == 4


def test_a_memory_of_so_many_bytes_holds_no_more_and_forgets_what_was_replaced():
    recent: Recent[str] = Recent(most=10, most_bytes=100)
    for number in range(5):
        recent.put(f"{number}", "x", 40)
    assert (len(recent), recent.bytes) == (2, 80) and recent.get("2") is None and recent.get("4") == "x"
    recent.put("4", "y", 50)
    assert (len(recent), recent.bytes) == (2, 90) and recent.get("4") == "y"
    recent.put("large", "z", 101)
    assert recent.get("large") is None and (len(recent), recent.bytes) == (2, 90)


def test_threads_share_what_is_remembered(light, monkeypatch):
    encoded = counting(light, monkeypatch)
    light.prompts.codes = Recent(most=3, most_bytes=1 << 20)
    wanted = [prompt(light, 1.0 + 0.1 * number) for number in range(5)]
    codes = [light.segment_codes(segment) for segment in wanted]
    wrong: list = []

    def work(step):
        for turn in range(20):
            number = (step * turn) % 5
            if not torch.equal(light.segment_codes(wanted[number]), codes[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, 2, 3, 4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong and len(light.prompts.codes) <= 3 and len(encoded) > 5


def test_a_prompt_that_does_not_fit_says_how_many_seconds_would(light):
    with pytest.raises(InputError, match=r"lasts 60.0 s, and only \d+\.\d s fit"):
        light.conversation([prompt(light, seconds=60)])


@pytest.mark.parametrize("text", ["", "   ", "...", "\n", "😀"])
def test_a_text_without_words_is_refused_in_one_sentence(light, text):
    with pytest.raises(InputError, match="nothing to say"):
        light.generate(text, 0)


@pytest.mark.parametrize(
    "segment,words",
    [
        (Segment(0, "Hi."), "no sound"),
        (Segment(0, "Hi.", audio=torch.zeros(2, 24_000)), "num_samples"),
        (Segment(0, "Hi.", codes=torch.zeros(5, 9, dtype=torch.int64)), "needs"),
        (Segment(0, "", audio=torch.zeros(24_000)), "nothing to say"),
    ],
)
def test_a_broken_segment_is_refused_in_one_sentence(light, segment, words):
    with pytest.raises(InputError, match=words):
        light.conversation([segment])
