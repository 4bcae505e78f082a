"""The measurements: each a function from a generator and a `Workload` to named samples, in seconds where not said.

Each repeats on a warm model. How much there is to do is fitted to how fast the model turns out to be.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from csm.bench.costs import cache_numbers
from csm.bench.machine import free_memory, synchronise
from csm.config import SAMPLE_RATE
from csm.engine import Context, EagerStep, Lineup, Stream
from csm.engine.frames import Rows, Segment, audio_rows
from csm.settings import Settings
from csm.speech.generator import Generator

Samples = dict[str, list[float]]

FRAME_SECONDS = 0.08
WARM_FRAMES = 2  # that come before any is timed

DRAWN = Settings(temperature=0.9, topk=50)  # whichever the model: all but the draw takes the same time
TEXT = "I think I left my umbrella in the restaurant, so I have to go back."


@dataclass(frozen=True)
class Workload:
    """What is said after which prompts, and how often. `frames` are stepped for the frame times of a repeat.

    `contexts` are positions in use and `batches` streams side by side at which frames are timed, `turns` those of the
    long conversation. No frame times are gathered for much longer than `patience` seconds.
    """

    prompts: list[Segment] = field(default_factory=list)
    text: str = TEXT
    repeats: int = 5
    frames: int = 50
    seed: int = 7
    max_turn_seconds: float = 8.0
    contexts: tuple[int, ...] = (64, 600, 1_800)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    turns: int = 20
    patience: float = 3.0

    def fitted(self, frame_seconds: float) -> Workload:
        """The same with shorter turns and fewer frames and repeats, for a model that needs so long for a frame."""
        patient = max(3, int(self.patience / frame_seconds))
        return replace(
            self,
            repeats=self.repeats if patient > self.frames else min(self.repeats, 2),
            frames=min(self.frames, patient),
            max_turn_seconds=min(self.max_turn_seconds, max(4, patient) * FRAME_SECONDS),
        )


def time_turns(generator: Generator, workload: Workload) -> Samples:
    """Whole turns, streamed, in a conversation whose prompts are in the cache already.

    `first_audio_seconds` runs from asking for the turn to having its first chunk; `real_time_factor` is the
    time of the whole turn, decoded, by the length of its sound.
    """
    samples: Samples = {
        "first_audio_seconds": [],
        "real_time_factor": [],
        "audio_seconds": [],
        "positions_prefilled": [],
    }
    conversation = generator.conversation(workload.prompts, workload.seed)
    longest = workload.max_turn_seconds * 1000
    conversation.rewind(conversation.say(workload.text, 0, longest, marked=False))
    for repeat in range(workload.repeats):
        start = time.perf_counter()
        first = None
        for _ in conversation.stream(workload.text, 0, longest, seed=workload.seed + repeat, marked=False):
            first = first or time.perf_counter() - start
        seconds = time.perf_counter() - start
        turn = conversation.turns[-1]
        audio = turn.audio.numel() / SAMPLE_RATE
        samples["audio_seconds"].append(audio)
        samples["positions_prefilled"].append(turn.positions_prefilled)
        if first is not None:  # a turn may be empty
            samples["first_audio_seconds"].append(first)
            samples["real_time_factor"].append(seconds / audio)
        conversation.rewind(turn)
    return samples


def time_new_conversations(generator: Generator, workload: Workload) -> Samples:
    """A click with a new voice: encode the prompts, prefill them and the text, and give the first chunk. Then the same
    with a known voice: whatever the generator remembers of prompts that it has met spares it work."""
    samples: Samples = {
        "new_voice_first_audio_seconds": [],
        "new_voice_positions_prefilled": [],
        "known_voice_first_audio_seconds": [],
    }
    for repeat in range(workload.repeats):
        prompts = [_unheard(prompt, repeat) for prompt in workload.prompts]
        for name in ("new_voice", "known_voice"):
            start = time.perf_counter()
            conversation = generator.conversation(prompts, workload.seed + repeat)
            chunks = conversation.stream(workload.text, 0, workload.max_turn_seconds * 1000, marked=False)
            if next(chunks, None) is not None:
                samples[f"{name}_first_audio_seconds"].append(time.perf_counter() - start)
                chunks.close()
            if name == "new_voice":
                samples["new_voice_positions_prefilled"].append(conversation.turns[-1].positions_prefilled)
    return samples


def _unheard(prompt: Segment, number: int) -> Segment:
    """The same recording, by a hair less loud, so that no memory knows it."""
    return prompt if prompt.audio is None else replace(prompt, audio=prompt.audio * (1 - 1e-5 * (number + 1)))


def time_frames(generator: Generator, workload: Workload) -> Samples:
    """Single frames of the language model, all codebooks and sampling, without the codec.

    They go on past the end of the turn, if it comes, so that each repeat counts the same frames.
    """
    samples: Samples = {"frame_seconds": []}
    engine = generator.engine
    turn = generator.turn_rows(workload.text, 0)
    rows = Rows.join([generator.prompt_rows(workload.prompts), turn]) if workload.prompts else turn
    for repeat in range(workload.repeats):
        context = engine.new_context()
        engine.prefill(context, rows)
        samples["frame_seconds"] += spoken(generator, context, workload.frames, seed=workload.seed + repeat)
    return samples


def intervals(frames: Iterator[object], count: int, patience: float = float("inf")) -> list[float]:
    """Seconds from each frame's coming to the next one's, as whoever takes them waits for them: of `count` frames after
    `WARM_FRAMES`, or of at least three, and then while `patience` seconds have not passed."""
    times: list[float] = []
    for number, _ in enumerate(frames, 1):
        if number >= WARM_FRAMES:
            times.append(time.perf_counter())
        if len(times) > count or (len(times) > 3 and times[-1] - times[0] > patience):
            break
    return [after - before for before, after in itertools.pairwise(times)]


def spoken(
    generator: Generator, context: Context, frames: int, patience: float = float("inf"), seed: int = 0
) -> list[float]:
    """`intervals` between the frames of one stream that goes on from `context`, as every turn is spoken here."""
    noise = torch.Generator(generator.device).manual_seed(seed)
    frames = min(frames, generator.config.max_positions - context.length - WARM_FRAMES)
    speaking = generator.engine.speak(context, DRAWN, noise, frames + WARM_FRAMES, endless=True)
    try:
        return intervals(speaking, frames, patience)
    finally:
        speaking.close()


def side_by_side(lineup: Lineup, generator: Generator, context: Context, workload: Workload) -> list[float]:
    """`intervals` between the frames of a full lineup, each of whose streams goes on from `context`."""
    for number in range(lineup.stage.slots):
        noise = torch.Generator(generator.device).manual_seed(workload.seed + number)
        longest = workload.frames + WARM_FRAMES
        lineup.join(Stream(lambda: context, DRAWN, noise, longest, keep=False, endless=True))
    try:
        return intervals((lineup.step() for _ in range(longest)), workload.frames, workload.patience)
    finally:
        lineup.clear()


def context_at(generator: Generator, positions: int) -> Context:
    """A context with `positions` in use, full of random numbers: nothing is prefilled, and its next frame is as much
    work as any other's there."""
    context = generator.engine.new_context()
    cache = context.cache
    for held in (cache.keys, cache.values):
        held[..., :positions, :].normal_()
    cache.length = positions
    context.state = torch.randn(1, generator.config.backbone.dim, dtype=cache.keys.dtype, device=generator.device)
    return context


def time_contexts(generator: Generator, workload: Workload) -> dict[int, list[float]]:
    """Seconds of a frame by positions in use, for those of the workload that fit."""
    found = {}
    for positions in workload.contexts:
        if positions + 3 + WARM_FRAMES <= generator.config.max_positions:
            context = context_at(generator, positions)
            found[positions] = spoken(generator, context, workload.frames, workload.patience, workload.seed)
    return found


def time_batches(generator: Generator, workload: Workload) -> dict[int, list[float]]:
    """Seconds of a frame of several streams that step together, by their number, each with 600 positions in use.

    A number whose keys and values would take more than half of the free memory is left out.
    """
    found, context = {}, _usual_context(generator)
    width = context.cache.keys.dtype.itemsize
    for streams in workload.batches:
        needed = streams * width * cache_numbers(generator.config.backbone, generator.config.max_positions)
        if needed <= free_memory(generator.device) / 2:
            found[streams] = side_by_side(generator.engine.lineups.new(streams), generator, context, workload)
    return found


def time_plain_torch(generator: Generator, workload: Workload) -> dict[str, list[float]]:
    """Seconds of a frame at 600 positions without the fused kernels: `eager`, each operation a launch of its own, and,
    where the device has them, as one `graph`."""
    engine, model = generator.engine, generator.engine.model
    context, noise = _usual_context(generator), torch.Generator(generator.device).manual_seed(workload.seed)

    def eager() -> Iterator[Tensor]:
        for _ in range(workload.frames + WARM_FRAMES):
            yield engine.step(context, DRAWN, noise).cpu()

    found = {"eager": intervals(eager(), workload.frames, workload.patience)}
    if generator.device.type == "cuda":
        lineup = engine.lineups.new(1, step=EagerStep(model, 1, generator.config.max_positions))
        found["graph"] = side_by_side(lineup, generator, _usual_context(generator), workload)
    return found


def speak_to_the_last_position(generator: Generator) -> Context:
    """One stream at its largest: read in all positions but a few at once, speak to the end, decode. -> its context."""
    config, engine = generator.config, generator.engine
    context, frames = engine.new_context(), 4
    heard = torch.randint(1, config.codec.codebook_size, (config.max_positions - frames, config.num_codebooks))
    engine.prefill(context, audio_rows(heard))
    noise = torch.Generator(generator.device).manual_seed(0)
    codes = torch.stack(list(engine.speak(context, DRAWN, noise, frames, endless=True)))
    generator.decode(codes.clamp_max(config.codec.codebook_size - 1))
    return context


def _usual_context(generator: Generator) -> Context:
    return context_at(generator, min(600, generator.config.max_positions // 2))


SHORT_TEXT = "That is what I meant."
HEARD_FRAMES = 12  # of each turn of the long conversation: one second


def time_later_turns(generator: Generator, workload: Workload) -> dict[str, dict[int, float]]:
    """Seconds to the first frame of each turn of a long conversation, by turn, from 1: `growing`, where a turn's own
    text is all that is read in, and `reference`, where the context is built anew for each turn, as the original does.

    Each is the median of a few passes, if one is quick; of the reference every fifth turn is measured.
    """
    engine, sampling = generator.engine, generator.filled()
    noise = torch.Generator(generator.device).manual_seed(workload.seed)
    text = generator.turn_rows(SHORT_TEXT, 0)
    shape = (HEARD_FRAMES, generator.config.num_codebooks)
    heard = audio_rows(torch.randint(1, generator.config.codec.codebook_size, shape))
    turns = min(workload.turns, (generator.config.max_positions - 1) // (len(text) + 1 + len(heard)))

    def first_frame(context: Context, rows: Rows) -> float:
        synchronise(generator.device)
        start = time.perf_counter()
        engine.prefill(context, rows)
        speaking = engine.speak(context, sampling, noise, 2, endless=True)
        next(speaking)
        seconds = time.perf_counter() - start
        speaking.close()
        return seconds

    def grow() -> dict[int, float]:
        context, found = engine.new_context(), {}
        for turn in range(1, turns + 1):
            found[turn] = first_frame(context, text)
            engine.prefill(context, heard)
        return found

    def build_anew() -> dict[int, float]:
        return {
            turn: first_frame(engine.new_context(), Rows.join([*[text, heard] * (turn - 1), text]))
            for turn in [1, *range(5, turns + 1, 5)]
        }

    first_frame(engine.new_context(), text)
    return {"growing": _passes(grow, workload), "reference": _passes(build_anew, workload)}


def _passes(measure: Callable[[], dict[int, float]], workload: Workload) -> dict[int, float]:
    """Medians over as many passes as there are repeats, or as patience allows."""
    start, found = time.perf_counter(), [measure()]
    while len(found) < workload.repeats and time.perf_counter() - start < workload.patience:
        found.append(measure())
    return {turn: statistics.median(each[turn] for each in found) for turn in found[0]}
