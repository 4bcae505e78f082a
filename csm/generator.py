"""Text in, speech out: `load`, then `generate`, `stream`, or a `Conversation` that remembers what was said.

There is one way in which sound is made, `Conversation.stream`; everything else here is its concatenation.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Chunks
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.checkpoint import HUB_MODEL, Loaded, load_model
from csm.codec import Codec
from csm.config import PRESETS, SAMPLE_RATE, Environment, ModelConfig
from csm.engine import Context, Engine, Stream
from csm.errors import InputError
from csm.frames import Budget, Rows, Segment, frames_in, longest_turn, room_for
from csm.model.packed import in_precision, reading_precision, rounded_by_kernels, usual_packing
from csm.prompts import Prompts
from csm.recent import Recent
from csm.settings import ABOUT, USUAL, Settings
from csm.voices import Voice, official_voices, shipped_voices
from csm.window import Window

LONGEST_CHUNK = 8  # frames; the first chunk is one frame, each next one twice as long up to this
PROMPT_CONTEXTS = 32, 128 << 20  # how many, and their bytes; two voices of 10 s are 11 MB of CSM-1B's KV cache

Stop = Callable[[], bool]  # asked again and again; True ends the turn with what was made


class ConversationFull(InputError):
    """The positions are used up, and this conversation keeps all its turns: the turn asked for no longer fits."""


@dataclass
class Turn:
    """One spoken turn. `codes` int64 (frames, K) are the truth; `audio` float32 (1920 frames,) is their sound.

    `state` is `ended` (by the model), `capped` (by the longest length or the budget) or `stopped` (by the caller).
    It takes `positions`: text, frames and the zero frame. Turn number `heard_from` (from 0) is the first that it heard:
    those before had left the window.
    """

    speaker: int
    text: str
    codes: Tensor
    audio: Tensor
    state: str
    positions_prefilled: int
    positions: int
    heard_from: int


class Conversation:
    """One growing context: prompts first, then turns, each of which hears all that came before.

    A turn prefills its own text and nothing else. When the model's positions are full, the oldest turns leave, the
    prompts stay where they are, and the turns that stay are prefilled once more behind them; `turns` keeps all.
    Without `slide` the turn is refused instead. Not for use from two threads at once.
    """

    def __init__(self, generator: Generator, prompts: list[Segment], seed: int | None, slide: bool = True) -> None:
        self.generator = generator
        self.seed = secrets.randbits(31) if seed is None else seed
        self.slide = slide
        self.turns: list[Turn] = []
        rows = generator.prompt_rows(prompts) if prompts else None
        self._window = Window(generator.engine, rows, self.turns, generator.turn_rows, generator.prompt_contexts)
        self._context = self._window.context

    @property
    def positions_used(self) -> int:
        """Positions in use, what waits to be read in with the next turn included; at most as many as the model has."""
        return self._window.used

    @property
    def positions_prefilled(self) -> int:
        """Positions read in so far, in all, copied prompts included; what was sampled doesn't count."""
        return self._context.prefilled

    def say(
        self,
        text: str,
        speaker: int,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
        min_p: float = 0.0,
    ) -> Turn:
        """Speak one turn to its end. `seed` asks for another take than the conversation's own."""
        for _ in self.stream(text, speaker, max_audio_length_ms, temperature, topk, seed, min_p=min_p):
            pass
        return self.turns[-1]

    def stream(
        self,
        text: str,
        speaker: int,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
        stop: Stop = lambda: False,
        min_p: float = 0.0,
    ) -> Chunks[Tensor, None, None]:
        """What `speak` gives, asked for one by one."""
        return self.speak(text, speaker, one_by_one(max_audio_length_ms, temperature, topk, min_p), seed, stop)

    def speak(
        self,
        text: str,
        speaker: int,
        settings: Settings = USUAL,
        seed: int | None = None,
        stop: Stop = lambda: False,
    ) -> Chunks[Tensor, None, None]:
        """Chunks of float32 samples at 24 kHz as they are made. The turn is in `turns` once the iterator ends;
        closing the iterator early keeps what was made, as `stopped`, and so does `stop`, asked at every frame.

        The `seed` of the settings is not this turn's: it has `seed`, or else follows from the conversation's. Raises
        `InputError` for a text that can't be spoken or is too long for the model, and `ConversationFull` when the turn
        no longer fits and no other may leave.
        """
        generator, context = self.generator, self._context
        sampling = generator.filled(settings)
        prefilled = context.prefilled
        text_positions, longest = self._begin(text, speaker, settings)
        noise = self._noise(seed)

        decoder = generator.codec.stream()
        speaking = generator.engine.speak(context, sampling, noise, longest)
        frames: list[Tensor] = []
        chunks: list[Tensor] = []
        state, sent, chunk = "stopped", 0, 1

        def decoded(upto: int) -> Tensor:
            with generator.engine.decoding():
                chunks.append(decoder.push(torch.stack(frames[sent:upto]).to(generator.device)).cpu())
            return chunks[-1]

        try:
            while len(frames) < longest:
                if stop():
                    break
                frame = next(speaking, None)
                if frame is None:
                    state = "ended"
                    break
                frames.append(frame)
                if len(frames) - sent >= chunk:
                    wave, sent, chunk = decoded(len(frames)), len(frames), min(2 * chunk, LONGEST_CHUNK)
                    yield wave
            else:
                state = "capped"
            if sent < len(frames):
                wave, sent = decoded(len(frames)), len(frames)
                yield wave
            with generator.engine.decoding():
                chunks.append(decoder.flush().cpu())
            if len(chunks[-1]):
                yield chunks[-1]
        finally:
            speaking.close()
            if state != "ended":
                generator.engine.close(context)
            codes = self._codes(frames)
            audio = torch.cat(chunks) if chunks else torch.zeros(0)
            read, positions = context.prefilled - prefilled, text_positions + len(codes) + 1
            self.turns.append(Turn(speaker, text, codes, audio, state, read, positions, self._window.heard_from))

    def say_best(
        self,
        text: str,
        speaker: int,
        seeds: Sequence[int],
        choose: Callable[[list[Turn]], int],
        settings: Settings = USUAL,
        stop: Stop = lambda: False,
    ) -> list[Turn]:
        """Speak one turn once for each seed, side by side in one batch, and go on from the one that `choose` names.

        Returns all of them, in the order of their seeds; the chosen one is in `turns`. What a seed gives differs
        from what it gives alone by no more than rounding does. Raises what `speak` raises.
        """
        generator, context, sampling = self.generator, self._context, self.generator.filled(settings)
        prefilled = context.prefilled
        text_positions, longest = self._begin(text, speaker, settings)
        try:
            with generator.engine.lineups.lend(len(seeds)) as lineup:
                streams = [
                    lineup.join(Stream(lambda: context, sampling, self._noise(seed), longest, keep=False))
                    for seed in seeds
                ]
                while not (all(stream.done for stream in streams) or stop()):
                    lineup.step()
                lineup.clear()
                turns = []
                for stream in streams:
                    if stream.error is not None:
                        raise stream.error
                    codes = self._codes(stream.frames)
                    read, positions = context.prefilled - prefilled, text_positions + len(codes) + 1
                    audio, first = generator.decode(codes), self._window.heard_from
                    turns.append(Turn(speaker, text, codes, audio, stream.state, read, positions, first))
                chosen = choose(turns)
                lineup.adopt(streams[chosen], context)
            generator.engine.close(context)
        except BaseException:
            self._window.step_back()
            raise
        self.turns.append(turns[chosen])
        return turns

    def hear(self, text: str, speaker: int, codes: Tensor) -> Turn:
        """Take in a turn that was spoken earlier: its codes int64 (frames, K) are read in with the next turn's text.

        The same turns leave as when it was spoken. Its `audio` stays empty. Raises `ConversationFull` as `stream` does.
        """
        codes = self.generator.segment_codes(Segment(speaker, text, codes=codes))
        rows = self.generator.turn_rows(text, speaker)
        positions = len(rows) + len(codes) + 1
        if not self.slide and self.positions_used + positions > self.generator.config.max_positions:
            raise self._full(positions)
        if self.slide:
            self._window.make_room(room_for(text, len(rows)))
        turn = Turn(speaker, text, codes, torch.zeros(0), "ended", positions, positions, self._window.heard_from)
        self.turns.append(turn)
        return turn

    def rewind(self, turn: Turn) -> None:
        """Back to before `turn`: it and what followed are forgotten. Nothing is prefilled again, unless turns had
        left since then: those that `turn` heard come back with the next turn's text."""
        number = next((number for number, known in enumerate(self.turns) if known is turn), None)
        if number is None:
            raise ValueError("This turn is not part of the conversation.")
        del self.turns[number:]
        self._window.step_back()

    def _begin(self, text: str, speaker: int, settings: Settings) -> tuple[int, int]:
        """Make room for a turn, read its text and whatever waits to be read. -> the positions of its text, and how many
        frames it may have."""
        generator, window = self.generator, self._window
        rows = generator.turn_rows(text, speaker)
        longest = frames_in(settings.max_turn_seconds)
        generator.budget.check_turn(text, len(rows), window.prompt_positions, longest)
        if self.slide:
            window.make_room(room_for(text, len(rows)))
        free = window.free - len(rows) - 1
        if free < 1:
            raise self._full(len(rows))
        window.read(rows)
        return len(rows), min(longest, free)

    def _noise(self, seed: int | None) -> torch.Generator:
        turn_seed = self.seed + len(self.turns) if seed is None else seed
        return torch.Generator(self.generator.device).manual_seed(turn_seed)

    def _codes(self, frames: list[Tensor]) -> Tensor:
        return torch.stack(frames).cpu() if frames else torch.zeros(0, self.generator.config.num_codebooks).long()

    def _full(self, needed: int) -> ConversationFull:
        return ConversationFull(
            f"This turn no longer fits: {self.positions_used} of {self.generator.config.max_positions} positions are "
            f"in use and its text needs {needed} more."
        )


class Generator:
    """A loaded model: weights, codec and tokenizer. Conversations own what changes; beyond them a generator remembers
    the codes of recordings, in `prompts`, and prompts that were read in, `prompt_contexts`: within bounds, and what is
    remembered changes no sample."""

    sample_rate = SAMPLE_RATE

    def __init__(self, loaded: Loaded, device: torch.device, kernel_weights: str = "bfloat16") -> None:
        self.model_name, self.stored = loaded.name, loaded.stored
        self.engine = Engine(loaded.model.to(device).eval().requires_grad_(False), kernel_weights)
        self.codec: Codec = loaded.codec
        self.codec.module.to(device).requires_grad_(False)
        self.tokenizer = loaded.tokenizer
        self.budget = Budget(self.config.max_positions)
        self.prompts = Prompts(self.config, self.tokenizer, self.codec, self.device)
        self.prompt_contexts: Recent[Context] = Recent(*PROMPT_CONTEXTS)
        self.codec_key = self.prompts.codec_key

    @property
    def config(self) -> ModelConfig:
        return self.engine.config

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def filled(self, settings: Settings = USUAL) -> Settings:
        """How codes are drawn: as the settings say, and where they leave it to the model as its config says."""
        return settings.filled(self.config)

    def voices(self) -> dict[str, Voice]:
        """The voices to choose from, by name: the shipped ones, and with a CSM-1B those published with it."""
        own, published = self.config.backbone, PRESETS["tiny"].backbone
        of_that_size = (own.layers, own.dim, own.mlp_dim) == (published.layers, published.dim, published.mlp_dim)
        return shipped_voices() | (official_voices() if of_that_size else {})

    def conversation(
        self, prompts: list[Segment] | None = None, seed: int | None = None, slide: bool = True
    ) -> Conversation:
        """A new conversation that begins with `prompts`, one segment or more for each voice.

        It goes on for as long as you like: when the positions are full, its oldest turns are no longer heard. Without
        `slide` all turns stay, and the one that no longer fits raises `ConversationFull`. Raises `InputError` when a
        prompt has no sound, has codes of the wrong shape, or is longer than fits.
        """
        return Conversation(self, list(prompts or []), seed, slide)

    def stream(
        self,
        text: str,
        speaker: int,
        context: list[Segment] | None = None,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
        min_p: float = 0.0,
    ) -> Iterator[Tensor]:
        """Speech for `text` after `context`, as float32 chunks at 24 kHz in order."""
        conversation = self.conversation(context, seed)
        yield from conversation.stream(text, speaker, max_audio_length_ms, temperature, topk, min_p=min_p)

    def generate(
        self,
        text: str,
        speaker: int,
        context: list[Segment] | None = None,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
        min_p: float = 0.0,
    ) -> Tensor:
        """float32 (num_samples,) at 24 kHz: the concatenation of `stream`."""
        chunks = list(self.stream(text, speaker, context, max_audio_length_ms, temperature, topk, seed, min_p))
        return torch.cat(chunks) if chunks else torch.zeros(0)

    def generate_codes(
        self,
        text: str,
        speaker: int,
        context: list[Segment] | None = None,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
        min_p: float = 0.0,
    ) -> Tensor:
        """int64 (frames, K), without the zero frame: what `generate` decodes."""
        conversation = self.conversation(context, seed)
        return conversation.say(text, speaker, max_audio_length_ms, temperature, topk, min_p=min_p).codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (frames, K) -> float32 (1920 frames,) on the CPU, bit for bit what `stream` gave for them."""
        stream, chunks, at, chunk = self.codec.stream(), [], 0, 1
        while at < len(codes):
            chunks.append(stream.push(codes[at : at + chunk].to(self.device)).cpu())
            at, chunk = at + chunk, min(2 * chunk, LONGEST_CHUNK)
        return torch.cat([*chunks, stream.flush().cpu()])

    def turn_rows(self, text: str, speaker: int) -> Rows:
        """The rows of a turn's text. Raises `InputError` when nothing in it can be spoken."""
        return self.prompts.turn_rows(text, speaker)

    def prompt_rows(self, prompts: list[Segment]) -> Rows:
        """The rows of whole segments, encoded where they come as audio."""
        return self.prompts.rows(prompts)

    def segment_codes(self, segment: Segment) -> Tensor:
        """A segment's codes, int64 (frames, K): its own, or its audio's. Raises `InputError` if it has neither."""
        return self.prompts.segment_codes(segment)


def one_by_one(max_audio_length_ms: float, temperature: float | None, topk: int | None, min_p: float = 0.0) -> Settings:
    """Settings as the original's `generate` takes them, one by one. Raises `InputError`.

    Its longest length knows no bound: no model has positions for more than ours.
    """
    longest_turn(max_audio_length_ms)
    seconds = min(max_audio_length_ms / 1000, ABOUT["max_turn_seconds"].most)
    return Settings(temperature=temperature, topk=topk, max_turn_seconds=seconds, min_p=min_p)


def usable_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CSM_DEVICE, else an accelerator if there is one, else the CPU.

    Raises `InputError` for one that is not there."""
    if device == "auto":
        device = Environment.read().device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {device!r} is not available here: use cpu, or auto.") from error
    return target


def load(
    model: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    adapter: str | None = None,
    weights: str | None = None,
) -> Generator:
    """Load a model: a preset, a local folder or weight file, or a hub id such as "sesame/csm-1b".

    `device` is as `usable_device` takes it. Without `model`, CSM_MODEL decides, else the accelerator: the published 1B
    model with one, the embedded nano without (and when the published one can't be had, after a warning that says why).
    `dtype` is the published models' precision: float32 on the CPU and bfloat16 elsewhere unless it is given; given, the
    model is left as it is published. `adapter` is a PEFT adapter to merge, a folder or a hub id.
    `weights` (or CSM_WEIGHTS) is the precision of any model's matrices: float32, bfloat16, on a CPU float16 or int8,
    and on CUDA int8 or float8. On a CPU they are packed, and all around them is float32; a model that is stored in
    float16, as nano is, keeps its weights so. Raises `InputError` in one sentence.
    """
    environment, target = Environment.read(), usable_device(device)
    weights = weights or environment.weights
    as_published = target.type != "cpu" or dtype is not None
    dtype = reading_precision(weights, dtype, target)

    def build(name: str) -> Generator:
        loaded = load_model(name, dtype, adapter)
        if weights and rounded_by_kernels(weights, target):
            return Generator(loaded, target, weights)
        usual = None if as_published else usual_packing(loaded.stored)
        loaded.model = in_precision(loaded.model, weights or usual)
        return Generator(loaded, target)

    name = model or environment.model
    if name:
        return build(name)
    if target.type != "cpu":
        try:
            return build(HUB_MODEL)
        except InputError as error:
            warnings.warn(f"{error} The embedded nano speaks instead.", stacklevel=2)
    return build("nano")
