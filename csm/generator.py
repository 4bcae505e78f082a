"""Text in, speech out: `load`, then `generate`, `stream`, or a `Conversation` that remembers what was said.

There is one way in which sound is made, `Conversation.stream`; everything else here is its concatenation.
"""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Chunks
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.checkpoint import HUB_MODEL, Loaded, load_model
from csm.codec import Codec
from csm.config import FRAME_SIZE, PRESETS, SAMPLE_RATE, Environment, ModelConfig
from csm.engine import Context, Engine, Snapshot
from csm.errors import InputError
from csm.frames import Budget, Rows, Segment, audio_rows, segment_rows, text_rows
from csm.model import Sampling
from csm.text import turn_text
from csm.voices import Voice, official_voices, shipped_voices

LONGEST_CHUNK = 8  # frames; the first chunk is one frame, each next one twice as long up to this
ROOM_FOR_A_TURN = 160  # positions that prompts must leave: a sentence of 100 letters and 5 s of speech

Stop = Callable[[], bool]  # asked again and again; True ends the turn with what was made


class ConversationFull(InputError):
    """The position budget is used up: the turn asked for no longer fits."""


@dataclass
class Turn:
    """One spoken turn. `codes` int64 (frames, K) are the truth; `audio` float32 (1920 frames,) is their sound.

    `state` is `ended` (by the model), `capped` (by the longest length or the budget) or `stopped` (by the caller).
    """

    speaker: int
    text: str
    codes: Tensor
    audio: Tensor
    state: str
    positions_prefilled: int
    before: Snapshot


class Conversation:
    """One growing context: prompts first, then turns, each of which hears all that came before.

    A turn prefills its own text and nothing else. Not for use from two threads at once.
    """

    def __init__(self, generator: Generator, prompts: list[Segment], seed: int | None) -> None:
        self.generator = generator
        self.seed = secrets.randbits(31) if seed is None else seed
        self.turns: list[Turn] = []
        self._context: Context = generator.engine.new_context()
        self._unread: Rows | None = None
        if prompts:
            self._unread = generator.prompt_rows(prompts)

    @property
    def positions_used(self) -> int:
        """Positions in use, prompts that wait for the first turn included."""
        return self._context.length + (len(self._unread) if self._unread else 0)

    @property
    def positions_prefilled(self) -> int:
        """Positions read in so far, in all; what was sampled doesn't count."""
        return self._context.prefilled

    def say(
        self,
        text: str,
        speaker: int,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
    ) -> Turn:
        """Speak one turn to its end. `seed` asks for another take than the conversation's own."""
        for _ in self.stream(text, speaker, max_audio_length_ms, temperature, topk, seed):
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
    ) -> Chunks[Tensor, None, None]:
        """Chunks of float32 samples at 24 kHz as they are made. The turn is in `turns` once the iterator ends;
        closing the iterator early keeps what was made, as `stopped`, and so does `stop`, asked at every frame.

        Raises `InputError` for a text that can't be spoken, `ConversationFull` when the turn doesn't fit.
        """
        generator, context = self.generator, self._context
        sampling = generator.sampling(temperature, topk)
        before, prefilled, longest = self._begin(text, speaker, max_audio_length_ms)
        noise = self._noise(seed)

        decoder = generator.codec.stream()
        frames: list[Tensor] = []
        chunks: list[Tensor] = []
        state, sent, chunk = "stopped", 0, 1

        def decoded(upto: int) -> Tensor:
            chunks.append(decoder.push(torch.stack(frames[sent:upto])).cpu())
            return chunks[-1]

        try:
            while len(frames) < longest:
                if stop():
                    break
                frame = generator.engine.step(context, sampling, noise)
                if not frame.any():
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
            chunks.append(decoder.flush().cpu())
            if len(chunks[-1]):
                yield chunks[-1]
        finally:
            if state != "ended":
                generator.engine.close(context)
            k = generator.config.num_codebooks
            codes = torch.stack(frames).cpu() if frames else torch.zeros(0, k, dtype=torch.int64)
            audio = torch.cat(chunks) if chunks else torch.zeros(0)
            self.turns.append(Turn(speaker, text, codes, audio, state, context.prefilled - prefilled, before))

    def say_best(
        self,
        text: str,
        speaker: int,
        seeds: Sequence[int],
        choose: Callable[[list[Turn]], int],
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        stop: Stop = lambda: False,
    ) -> list[Turn]:
        """Speak one turn once for each seed, side by side in one batch, and go on from the one that `choose` names.

        Returns all of them, in the order of their seeds; the chosen one is in `turns`. What a seed gives differs
        from what it gives alone by no more than rounding does. Raises what `stream` raises.
        """
        engine, context, sampling = self.generator.engine, self._context, self.generator.sampling(temperature, topk)
        before, prefilled, longest = self._begin(text, speaker, max_audio_length_ms)
        try:
            noise = [self._noise(seed) for seed in seeds]
            fork = engine.fork(context, len(seeds), longest)
            frames: list[Tensor] = []
            ends = [longest] * len(seeds)
            states = ["capped"] * len(seeds)
            while len(frames) < longest and "capped" in states:
                if stop():
                    states = [state.replace("capped", "stopped") for state in states]
                    ends = [min(end, len(frames)) for end in ends]
                    break
                frames.append(engine.step_each(fork, sampling, noise))
                for index, speaking in enumerate(frames[-1].any(dim=1).tolist()):
                    if not speaking and states[index] == "capped":
                        states[index], ends[index] = "ended", len(frames) - 1
            k = self.generator.config.num_codebooks
            made = torch.stack(frames, 1).cpu() if frames else torch.zeros(len(seeds), 0, k, dtype=torch.int64)
            read = context.prefilled - prefilled
            turns = []
            for codes, end, state in zip(made, ends, states):
                codes = codes[:end].clone()
                turns.append(Turn(speaker, text, codes, self.generator.decode(codes), state, read, before))
            chosen = choose(turns)
            engine.adopt(context, fork, chosen, ends[chosen])
        except BaseException:
            context.rewind(before)
            raise
        self.turns.append(turns[chosen])
        return turns

    def hear(self, text: str, speaker: int, codes: Tensor) -> Turn:
        """Take in a turn that was spoken earlier: its codes int64 (frames, K) are read in with the next turn's text.

        The turn's `audio` stays empty. Raises `ConversationFull` when it doesn't fit.
        """
        codes = self.generator.segment_codes(Segment(speaker, text, codes=codes))
        ended = torch.cat([codes, codes.new_zeros(1, codes.shape[1])])
        rows = Rows.join([self.generator.turn_rows(text, speaker), audio_rows(ended)])
        if self.positions_used + len(rows) > self.generator.config.max_positions:
            raise self._full(len(rows))
        turn = Turn(speaker, text, codes, torch.zeros(0), "ended", len(rows), Snapshot(self.positions_used, None))
        self._unread = Rows.join([self._unread, rows]) if self._unread else rows
        self.turns.append(turn)
        return turn

    def _begin(self, text: str, speaker: int, max_audio_length_ms: float) -> tuple[Snapshot, int, int]:
        """Read a turn's text, and whatever waits to be read. -> where to come back to, positions read in before,
        and how many frames the turn may have."""
        generator, context = self.generator, self._context
        rows = generator.turn_rows(text, speaker)
        free = generator.config.max_positions - self.positions_used - len(rows) - 1
        if free < 1:
            raise self._full(len(rows))
        longest = int(max_audio_length_ms / 1000 * SAMPLE_RATE / FRAME_SIZE)
        if longest < 1:
            raise InputError("The longest length of a turn is below one frame; allow at least 80 milliseconds.")
        before, prefilled = context.snapshot(), context.prefilled
        if self._unread is not None:  # coming back to the first turn means back to behind the prompts
            before = Snapshot(self.positions_used, None)
            rows, self._unread = Rows.join([self._unread, rows]), None
        generator.engine.prefill(context, rows)
        return before, prefilled, min(longest, free)

    def _noise(self, seed: int | None) -> torch.Generator:
        turn_seed = self.seed + len(self.turns) if seed is None else seed
        return torch.Generator(self.generator.device).manual_seed(turn_seed)

    def _full(self, needed: int) -> ConversationFull:
        return ConversationFull(
            f"This turn no longer fits: {self.positions_used} of {self.generator.config.max_positions} positions are "
            f"in use and its text needs {needed} more."
        )

    def rewind(self, turn: Turn) -> None:
        """Back to before `turn`: it and what followed are forgotten, and nothing is prefilled again."""
        if not any(turn is known for known in self.turns):
            raise ValueError("This turn is not part of the conversation.")
        while self.turns:
            last = self.turns.pop()
            waiting = last.before.length - self._context.length
            if waiting > 0 and self._unread is not None:  # it was heard, and not yet read in
                self._unread = Rows(self._unread.ids[:waiting], self._unread.mask[:waiting])
            else:
                self._context.rewind(last.before)
                self._unread = None
            if last is turn:
                return


class Generator:
    """A loaded model: weights, codec and tokenizer. Stateless between calls; conversations own what changes."""

    sample_rate = SAMPLE_RATE

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.model_name = loaded.name
        self.engine = Engine(loaded.model.to(device).eval().requires_grad_(False))
        self.codec: Codec = loaded.codec
        self.codec.module.to(device).requires_grad_(False)
        self.codec_key = _key_of(self.codec.module)
        self.tokenizer = loaded.tokenizer
        self.budget = Budget(self.config.max_positions)

    @property
    def config(self) -> ModelConfig:
        return self.engine.config

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def sampling(self, temperature: float | None = None, topk: int | None = None) -> Sampling:
        """How codes are drawn: as given, and otherwise as the model's config says. Raises `InputError`."""
        usual = self.config
        return Sampling(usual.temperature if temperature is None else temperature, usual.topk if topk is None else topk)

    def voices(self) -> dict[str, Voice]:
        """The voices to choose from, by name: the shipped ones, and with a CSM-1B those published with it."""
        own, published = self.config.backbone, PRESETS["tiny"].backbone
        of_that_size = (own.layers, own.dim, own.mlp_dim) == (published.layers, published.dim, published.mlp_dim)
        return shipped_voices() | (official_voices() if of_that_size else {})

    def conversation(self, prompts: list[Segment] | None = None, seed: int | None = None) -> Conversation:
        """A new conversation that begins with `prompts`, one segment or more for each voice.

        Raises `InputError` when a prompt has no sound, has codes of the wrong shape, or is longer than fits.
        """
        return Conversation(self, list(prompts or []), seed)

    def stream(
        self,
        text: str,
        speaker: int,
        context: list[Segment] | None = None,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """Speech for `text` after `context`, as float32 chunks at 24 kHz in order."""
        conversation = self.conversation(context, seed)
        yield from conversation.stream(text, speaker, max_audio_length_ms, temperature, topk)

    def generate(
        self,
        text: str,
        speaker: int,
        context: list[Segment] | None = None,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """float32 (num_samples,) at 24 kHz: the concatenation of `stream`."""
        chunks = list(self.stream(text, speaker, context, max_audio_length_ms, temperature, topk, seed))
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
    ) -> Tensor:
        """int64 (frames, K), without the zero frame: what `generate` decodes."""
        conversation = self.conversation(context, seed)
        return conversation.say(text, speaker, max_audio_length_ms, temperature, topk).codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (frames, K) -> float32 (1920 frames,) on the CPU, bit for bit what `stream` gave for them."""
        stream, chunks, at, chunk = self.codec.stream(), [], 0, 1
        while at < len(codes):
            chunks.append(stream.push(codes[at : at + chunk].to(self.device)).cpu())
            at, chunk = at + chunk, min(2 * chunk, LONGEST_CHUNK)
        return torch.cat([*chunks, stream.flush().cpu()])

    def turn_rows(self, text: str, speaker: int) -> Rows:
        """The rows of a turn's text. Raises `InputError` when nothing in it can be spoken."""
        if speaker < 0:
            raise InputError(f"The speaker is {speaker}; speakers are numbered from 0.")
        rows = text_rows(self.tokenizer, text.strip(), speaker, self.config.num_codebooks)
        if len(rows) <= len(self.tokenizer.encode(turn_text("", speaker))) or not any(map(str.isalnum, text)):
            raise InputError("There is nothing to say in this turn: write some words.")
        return rows

    def prompt_rows(self, prompts: list[Segment]) -> Rows:
        """The rows of whole segments, encoded where they come as audio."""
        parts: list[Rows] = []
        for segment in prompts:
            used = sum(map(len, parts))
            text = len(self.turn_rows(segment.text, segment.speaker))
            if segment.audio is not None and segment.codes is None:  # before the encoder spends minutes on an hour
                frames = -(-segment.audio.shape[-1] // FRAME_SIZE)
                self.budget.check_prompt(frames, text, used, ROOM_FOR_A_TURN)
            codes = self.segment_codes(segment)
            self.budget.check_prompt(len(codes), text, used, ROOM_FOR_A_TURN)
            parts.append(segment_rows(self.tokenizer, segment, codes))
        return Rows.join(parts)

    def segment_codes(self, segment: Segment) -> Tensor:
        """A segment's codes, int64 (frames, K): its own, or its audio's. Raises `InputError` if it has neither."""
        if segment.codes is not None:
            if segment.codes.dim() != 2 or segment.codes.shape[1] != self.config.num_codebooks:
                raise InputError(
                    f"A segment's codes have shape {tuple(segment.codes.shape)}; this model needs "
                    f"(frames, {self.config.num_codebooks})."
                )
            codes = segment.codes.to(torch.int64).cpu()
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.audio_vocab_size:
                raise InputError("A segment has codes that this model doesn't know: they are another model's.")
            return codes
        if segment.audio is None or segment.audio.numel() == 0:
            raise InputError("A context segment has no sound: give it audio or codes.")
        if segment.audio.dim() != 1:
            raise InputError(f"A segment's audio has shape {tuple(segment.audio.shape)}; it must be (num_samples,).")
        return self.codec.encode(segment.audio.float().to(self.device)).cpu()


def _key_of(module: torch.nn.Module) -> str:
    """Sixteen hexadecimal digits that tell a codec from others: of a few numbers out of each of its weights."""
    found = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        values = weight.detach().flatten()[:8].to("cpu", torch.float32).numpy()
        found.update(f"{name} {tuple(weight.shape)} ".encode() + values.tobytes())
    return found.hexdigest()[:16]


def load(
    model: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    adapter: str | None = None,
) -> Generator:
    """Load a model: a preset, a local folder or weight file, or a hub id such as "sesame/csm-1b".

    `device` "auto" takes CSM_DEVICE, else an accelerator if there is one, else the CPU. Without `model`, CSM_MODEL
    decides, else the accelerator: the published 1B model with one, the embedded nano without (and when the
    published one can't be had, after a warning that says why). `dtype` is the published models' precision: float32 on
    the CPU and bfloat16 elsewhere unless it is given. `adapter` is a PEFT adapter to merge, a folder or a hub id.
    Raises `InputError` in one sentence.
    """
    environment = Environment.read()
    if device == "auto":
        device = environment.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {device!r} is not available here: use cpu, or auto.") from error
    dtype = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    name = model or environment.model
    if name:
        return Generator(load_model(name, dtype, adapter), target)
    if target.type != "cpu":
        try:
            return Generator(load_model(HUB_MODEL, dtype, adapter), target)
        except InputError as error:
            warnings.warn(f"{error} The embedded nano speaks instead.", stacklevel=2)
    return Generator(load_model("nano", adapter=adapter), target)
