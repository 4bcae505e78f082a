"""The engine below the generator: slots side by side, a frame as one step, and its recording as a graph."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csm.engine import EagerStep, Engine, GraphedStep, Lineup, Stage, Stream
from csm.engine.frames import Rows
from csm.engine.graph import Recorder
from csm.model import RowSampling, frame_noise, sample, width_for
from csm.settings import Settings
from tests.small import end_after, small_generator

SAMPLINGS = [
    Settings(temperature=temperature, topk=topk, min_p=min_p)
    for temperature, topk, min_p in ((0.9, 50, 0), (1.3, 3, 0.3), (1.0, 1, 0.5), (0.5, 34, 0), (2.0, 500, 0.02))
]


def small_engine(device="cpu"):
    return Engine(small_generator().engine.model.to(device))


@pytest.fixture
def engine():
    return small_engine()


def text(length, seed=0):
    ids = torch.zeros(length, 5, dtype=torch.int64)
    ids[:, -1] = torch.randint(0, 258, (length,), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -1] = True
    return Rows(ids, mask)


def prefilled(engine, length, seed=0):
    context = engine.new_context()
    engine.prefill(context, text(length, seed))
    return context


def noise(engine, seed):
    return torch.Generator(engine.device).manual_seed(seed)


def test_on_a_cpu_nothing_is_kept_of_a_turn_and_whoever_is_left_in_a_lineup_is_made_to_leave(engine):
    with engine.lineups.lend(3) as lineup:
        assert lineup.stage.slots == 4
        streams = [joined(engine, lineup, 9, seed, SAMPLINGS[0]) for seed in range(5)]
        lineup.step()
    assert [stream.state for stream in streams] == ["stopped"] * 5 and lineup.speaking == lineup.waiting == 0
    assert [len(stream.codes) for stream in streams] == [1, 1, 1, 1, 0]
    with engine.lineups.lend(3) as other:
        assert other is not lineup


def alone(engine, length, seed, sampling, frames):
    context, generator = prefilled(engine, length, seed), noise(engine, seed)
    return torch.stack([engine.step(context, sampling, generator) for _ in range(frames)]).cpu()


def eager_lineup(engine, slots, ahead=0):
    step = EagerStep(engine.model, slots, engine.config.max_positions)
    return Lineup(Stage(engine.model, slots, step), ahead)


def joined(engine, lineup, length, seed, sampling, longest=20, **options):
    context = prefilled(engine, length, seed)
    return lineup.join(Stream(lambda: context, sampling, noise(engine, seed), longest, endless=True, **options))


def spoken(lineup):
    while lineup.speaking or lineup.waiting:
        lineup.step()


def test_rows_with_their_own_sampling_draw_what_they_would_draw_alone():
    logits = torch.randn(5, 35, generator=torch.Generator().manual_seed(1)) * 3
    race = torch.empty(5, 35).exponential_(1, generator=torch.Generator().manual_seed(2))
    race[2] = 1
    temperature = torch.tensor([[0.9], [1.3], [1.0], [0.5], [2.0]])
    floor = torch.tensor([[settings.floor] for settings in SAMPLINGS])
    rows = RowSampling(temperature, torch.tensor([[50], [3], [1], [34], [500]]), width_for(500, 35), floor)
    single = [sample(logits[i : i + 1], how, race[i : i + 1])[0] for i, how in enumerate(SAMPLINGS)]
    assert torch.equal(sample(logits, rows, race), torch.stack(single))


def test_a_streams_noise_is_one_draw_a_frame_from_its_own_generator():
    def generator(seed):
        return torch.Generator().manual_seed(seed)

    both = frame_noise([generator(1), generator(2)], 4, 35, torch.device("cpu"))
    assert both.shape == (2, 4, 35) and both.dtype == torch.float32
    assert torch.equal(both[1], torch.empty(4, 35).exponential_(1, generator=generator(2)))


def test_streams_of_different_lengths_step_together_as_each_does_alone(engine):
    lineup = eager_lineup(engine, 5)
    streams = [joined(engine, lineup, 3 + 21 * seed, seed, how) for seed, how in enumerate(SAMPLINGS)]
    spoken(lineup)
    for seed, (stream, how) in enumerate(zip(streams, SAMPLINGS)):
        assert torch.equal(stream.codes, alone(engine, 3 + 21 * seed, seed, how, 20))


def test_frames_launched_ahead_change_nothing_and_none_is_spoken_past_the_longest(engine):
    for ahead in (0, 1, 3):
        lineup = eager_lineup(engine, 2, ahead)
        streams = [joined(engine, lineup, 250, 1, SAMPLINGS[0], 5), joined(engine, lineup, 9, 2, SAMPLINGS[0], 8)]
        spoken(lineup)
        assert torch.equal(streams[0].codes, alone(engine, 250, 1, SAMPLINGS[0], 5))
        assert torch.equal(streams[1].codes, alone(engine, 9, 2, SAMPLINGS[0], 8))


def test_a_context_goes_on_behind_what_was_spoken_in_a_slot(engine):
    plain, generator = prefilled(engine, 12, 5), noise(engine, 5)
    frames = [engine.step(plain, SAMPLINGS[0], generator) for _ in range(6)]
    lineup = eager_lineup(engine, 2, ahead=1)
    joined(engine, lineup, 40, 3, SAMPLINGS[1], 30)
    context = prefilled(engine, 12, 5)
    stream = lineup.join(Stream(lambda: context, SAMPLINGS[0], noise(engine, 5), 100, endless=True))
    while len(stream.frames) < 6:
        lineup.step()
    lineup.leave(stream)
    assert stream.state == "stopped" and context.length == plain.length == 18
    assert torch.allclose(context.state, plain.state, atol=1e-4)
    for memory in (context, plain):
        engine.close(memory)
        engine.prefill(memory, text(7, 8))
    assert torch.equal(torch.stack(frames), stream.codes)
    again = [engine.step(memory, SAMPLINGS[0], noise(engine, 6)) for memory in (context, plain)]
    assert torch.equal(*again)


def test_a_slot_that_stands_still_loses_nothing_even_when_its_memory_is_full(engine):
    step = EagerStep(engine.model, 2, engine.config.max_positions)
    stage = Stage(engine.model, 2, step)
    full, other = prefilled(engine, 256, 1), prefilled(engine, 9, 2)
    stage.enter(0, full, SAMPLINGS[0])
    stage.enter(1, other, SAMPLINGS[0])
    kept = step.keys[:, 0, :, :256].clone()
    for _ in range(3):
        launched = stage.launch({1: noise(engine, 2)})
    assert torch.equal(step.keys[:, 0, :, :256], kept)
    assert torch.equal(launched.states[0], full.state[0])


class Operations(TorchDispatchMode):
    """The names and the input shapes of what is run inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        shapes = [tuple(part.shape) for part in args if isinstance(part, torch.Tensor)]
        self.seen.append((str(function), shapes))
        return function(*args, **(kwargs or {}))


def operations(engine, lengths, span):
    step = EagerStep(engine.model, len(lengths), engine.config.max_positions)
    step.fit(len(lengths), span)
    state, codes = torch.randn(len(lengths), 32), torch.zeros(len(lengths), 4, dtype=torch.int64)
    race = frame_noise([noise(engine, seed) for seed in range(len(lengths))], 4, 35, engine.device)
    with torch.inference_mode(), Operations() as run:
        step.step(state, race, codes, torch.tensor(lengths), torch.tensor([True, False, True]))
    return run.seen


def test_a_step_can_be_recorded_since_it_asks_for_no_value_and_does_the_same_for_all_lengths(engine):
    engine.model.sample_frame(torch.zeros(1, 32), Settings(topk=1), None)  # the rotary tables are built once
    prefilled(engine, 3)
    first, second = operations(engine, [3, 0, 17], 32), operations(engine, [30, 256, 1], 32)
    assert first == second
    names = {name for name, _ in first}
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.")
    assert not [name for name in names if any(wait in name for wait in waits)]


class Replays:
    """Records by remembering; `run` counts the replays of each recording."""

    def __init__(self):
        self.run = []

    def __call__(self, work):
        work()  # as the warm-up does
        number = len(self.run)
        self.run.append(0)

        def replay():
            self.run[number] += 1
            work()

        return replay


def graphed(engine, slots, record, ahead=1):
    step = GraphedStep(EagerStep(engine.model, slots, engine.config.max_positions), record)
    return step, Lineup(Stage(engine.model, slots, step), ahead)


def test_one_graph_is_recorded_for_each_shape_and_replayed_from_then_on(engine):
    replays = Replays()
    step, lineup = graphed(engine, 2, replays)
    one = joined(engine, lineup, 20, 1, SAMPLINGS[0], 30)
    for _ in range(14):
        lineup.step()
    two = joined(engine, lineup, 3, 2, SAMPLINGS[1], 14)
    spoken(lineup)
    assert torch.equal(one.codes, alone(engine, 20, 1, SAMPLINGS[0], 30))
    assert torch.equal(two.codes, alone(engine, 3, 2, SAMPLINGS[1], 14))
    assert step.recorded == len(replays.run) == 3  # alone up to 32 and up to 64 positions, both up to 64
    assert sum(replays.run) == 30


def test_warming_up_records_every_length_and_disturbs_nobody(engine):
    replays = Replays()
    _, lineup = graphed(engine, 2, replays, ahead=0)
    stream = joined(engine, lineup, 20, 1, SAMPLINGS[0], 12)
    for _ in range(5):
        lineup.step()
    lineup.stage.warm_up(rows=2)
    spoken(lineup)
    assert torch.equal(stream.codes, alone(engine, 20, 1, SAMPLINGS[0], 12))


def test_a_graph_that_cannot_be_recorded_is_one_warning_and_the_frames_come_all_the_same(engine):
    def refuse(work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    _, lineup = graphed(engine, 1, refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = joined(engine, lineup, 20, 1, SAMPLINGS[0], 20)
        spoken(lineup)
    assert torch.equal(stream.codes, alone(engine, 20, 1, SAMPLINGS[0], 20))
    assert len(caught) == 1 and "frames are stepped without" in str(caught[0].message)


def test_what_cannot_be_recorded_is_recorded_in_a_simpler_way_if_there_is_one(engine, monkeypatch):
    ways, replays = [], Replays()

    def simplify(step):
        ways.append(step)
        return True

    def refuse_the_first(work):
        if not ways:
            raise RuntimeError("the driver knows no such launch")
        return replays(work)

    monkeypatch.setattr(EagerStep, "simplify", simplify)
    step, lineup = graphed(engine, 1, refuse_the_first)
    with pytest.warns(UserWarning, match="recorded in a simpler way, because the driver knows no such launch"):
        stream = joined(engine, lineup, 20, 1, SAMPLINGS[0], 20)
        spoken(lineup)
    assert torch.equal(stream.codes, alone(engine, 20, 1, SAMPLINGS[0], 20))
    assert ways == [step.inner] and step.recorded == 2 and sum(replays.run) == 20


def test_a_stream_that_speaks_from_nothing_fails_and_frees_its_slot(engine):
    lineup = eager_lineup(engine, 1)
    stream = lineup.join(Stream(engine.new_context, SAMPLINGS[0], noise(engine, 1), 5))
    other = joined(engine, lineup, 9, 2, SAMPLINGS[0], 5)
    spoken(lineup)
    assert stream.state == "failed" and "Nothing has been prefilled" in str(stream.error)
    assert torch.equal(other.codes, alone(engine, 9, 2, SAMPLINGS[0], 5))


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_conversation_on_a_stage_is_the_one_without(ahead):
    spoken = []
    for on_stage in (False, True):
        generator = small_generator()
        engine = generator.engine
        if on_stage:
            engine.speak = engine.speak_on_stage
            engine.lineups.new = lambda slots: eager_lineup(engine, slots, ahead)  # noqa: B023
        conversation = generator.conversation(seed=1)
        capped = conversation.say("Hello there.", 0, max_audio_length_ms=800)
        stopped = conversation.stream("How are you?", 1, max_audio_length_ms=4000)
        next(stopped), next(stopped)
        stopped.close()
        if not ahead:  # it counts the frames that are sampled
            end_after(generator, 5)
        conversation.say("Fine.", 0, max_audio_length_ms=800)
        spoken.append(conversation)
        assert conversation.turns[0] is capped
    plain, staged = spoken
    assert [turn.state for turn in staged.turns] == ["capped", "stopped", "capped" if ahead else "ended"]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(plain.turns, staged.turns, strict=True))
    assert plain.positions_used == staged.positions_used


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
def test_a_graph_gives_exactly_the_codes_of_the_steps_it_recorded():
    engine = small_engine("cuda")
    lineups = [eager_lineup(engine, 3), graphed(engine, 3, Recorder(engine.device))[1]]
    codes = []
    for lineup in lineups:
        streams = [joined(engine, lineup, 9 + 7 * seed, seed, SAMPLINGS[seed], 40) for seed in range(3)]
        spoken(lineup)
        codes.append([stream.codes for stream in streams])
    assert all(torch.equal(*pair) for pair in zip(*codes))


@needs_gpu
def test_on_a_gpu_a_turn_has_the_codes_that_single_steps_give():
    engine = small_engine("cuda")
    sampling = SAMPLINGS[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = list(engine.speak(prefilled(engine, 12, 5), sampling, noise(engine, 5), 30))
    assert torch.equal(torch.stack(frames), alone(engine, 12, 5, sampling, 30))


@needs_gpu
def test_a_second_turn_on_a_gpu_records_nothing_new():
    engine = small_engine("cuda")
    engine.warm_up()
    (lineup,) = engine.lineups._idle[1]
    recorded = lineup.stage._step.recorded
    for seed in range(2):
        list(engine.speak(prefilled(engine, 12, seed), SAMPLINGS[0], noise(engine, seed), 10))
    assert engine.lineups._idle[1] == [lineup] and lineup.stage._step.recorded == recorded
