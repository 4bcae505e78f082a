"""Text in, speech out: `generate`, `stream`, or a `Conversation` that remembers what was said.

There is one way in which sound is made, `Conversation.speak`; everything else here is its concatenation. Sound that is
heard while it is made gets its watermark there; codes, and what later turns hear of earlier ones, know nothing of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as Chunks
from contextlib import contextmanager

import torch
from torch import Tensor

from csm.checkpoint import Loaded
from csm.codec import Codec
from csm.config import PRESETS, SAMPLE_RATE, ModelConfig
from csm.engine import Context, Engine, Stream
from csm.engine.frames import Budget, Rows, Segment, frames_in, longest_turn, room_for
from csm.errors import InputError
from csm.recent import Recent
from csm.settings import ABOUT, USUAL, Settings
from csm.speech.clauses import clauses
from csm.speech.prompts import Prompts
from csm.speech.sound import TurnSound, chunk_sizes
from csm.speech.turn import Takes, Turn
from csm.speech.voices import Voice, load_prompt, official_voices, shipped_voices
from csm.speech.window import Window

PROMPT_CONTEXTS = 32, 128 << 20  # how many, and their bytes; two voices of 10 s are 11 MB of CSM-1B's KV cache

Stop = Callable[[], bool]  # asked again and again; True ends the turn with what was made


class ConversationFull(InputError):
    """The positions are used up, and this conversation keeps all its turns: the turn asked for no longer fits."""


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
        self._window = Window(generator.engine, rows, self.turns, generator.prompts.format, generator.prompt_contexts)
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
        marked: bool = True,
        speed: float = 1.0,
    ) -> Turn:
        """Speak one turn to its end. `seed` asks for another take than the conversation's own."""
        settings = one_by_one(max_audio_length_ms, temperature, topk, min_p, speed)
        for _ in self.speak(text, speaker, settings, seed, marked=marked):
            pass
        return self.turns[-1]

    def stream(
        self,
        text: str | Iterable[str],
        speaker: int,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
        stop: Stop = lambda: False,
        min_p: float = 0.0,
        marked: bool = True,
        speed: float = 1.0,
    ) -> Chunks[Tensor, None, None]:
        """What `speak` gives, asked for one by one.

        A text that is still being written may come as an iterator of its pieces: each clause becomes a turn, spoken as
        soon as it is whole, with the `seed`, one more, and so on.
        """
        settings = one_by_one(max_audio_length_ms, temperature, topk, min_p, speed)
        if isinstance(text, str):
            return self.speak(text, speaker, settings, seed, stop, marked)
        return self._speak_clauses(text, speaker, settings, seed, stop, marked)

    def speak(
        self,
        text: str,
        speaker: int,
        settings: Settings = USUAL,
        seed: int | None = None,
        stop: Stop = lambda: False,
        marked: bool = True,
    ) -> Chunks[Tensor, None, None]:
        """Chunks of float32 samples at 24 kHz as they are made, 0.24 s behind where they are `marked`. The turn is in
        `turns` once the iterator ends; closing the iterator early keeps what was made, as `stopped`, and so does
        `stop`, asked at every frame.

        The `seed` of the settings is not this turn's: it has `seed`, or else follows from the conversation's. Raises
        `InputError` for a text that can't be spoken or is too long for the model, and `ConversationFull` when the turn
        no longer fits and no other may leave.
        """
        generator, context = self.generator, self._context
        sampling = generator.filled(settings)
        prefilled = context.prefilled
        sound = TurnSound(generator.codec, generator.engine, marked, sampling.speed)
        text_positions, longest = self._begin(text, speaker, settings)
        noise = self._noise(seed)
        speaking = generator.engine.speak(context, sampling, noise, longest)
        frames, state, sizes = sound.frames, "stopped", chunk_sizes()
        chunk = next(sizes)
        try:
            while len(frames) < longest:
                if stop():
                    break
                frame = next(speaking, None)
                if frame is None:
                    state = "ended"
                    break
                frames.append(frame)
                if sound.waiting >= chunk:
                    ready, chunk = sound.decoded(), next(sizes)
                    if len(ready):
                        yield ready
            else:
                state = "capped"
            if len(ready := sound.finished()):
                yield ready
        finally:
            speaking.close()
            if state != "ended":
                generator.engine.close(context)
            codes = self._codes(frames)
            self.turns.append(
                Turn(
                    speaker,
                    text,
                    codes,
                    sound.given,
                    state,
                    context.prefilled - prefilled,
                    text_positions + len(codes) + 1,
                    self._window.heard_from,
                    sound.unmarked,
                )
            )

    def _speak_clauses(
        self, texts: Iterable[str], speaker: int, settings: Settings, seed: int | None, stop: Stop, marked: bool
    ) -> Chunks[Tensor, None, None]:
        for number, clause in enumerate(clauses(texts)):
            yield from self.speak(clause, speaker, settings, None if seed is None else seed + number, stop, marked)
            if self.turns[-1].state == "stopped":
                return

    @contextmanager
    def takes(self, text: str, speaker: int, settings: Settings, seeds: Sequence[int]) -> Iterator[Takes]:
        """Speak one turn once for each seed, side by side in one batch; the block steps them and says which to keep.

        The conversation goes on from that one; without a choice it is as if nothing had been said. What a seed gives
        differs from what it gives alone by no more than rounding does. Raises what `speak` raises.
        """
        generator, context, sampling = self.generator, self._context, self.generator.filled(settings)
        prefilled = context.prefilled
        text_positions, longest = self._begin(text, speaker, settings)

        def turn(stream: Stream) -> Turn:
            if stream.error is not None:
                raise stream.error
            codes = self._codes(stream.frames)
            read, positions = context.prefilled - prefilled, text_positions + len(codes) + 1
            audio, first = generator.decode(codes), self._window.heard_from
            return Turn(speaker, text, codes, audio, stream.state, read, positions, first, audio)

        try:
            copies, noises = [context.copy(longest + 1) for _ in seeds], [self._noise(seed) for seed in seeds]
            with generator.engine.speak_side_by_side(copies, sampling, noises, longest) as together:
                takes = Takes(together, turn)
                yield takes
            if takes.kept is None:
                raise RuntimeError("No take was kept.")
            generator.engine.adopt(context, copies[takes.kept], len(takes.turns[takes.kept].codes))
            generator.engine.close(context)
        except BaseException:
            self._window.step_back()
            raise
        self.turns.append(takes.turns[takes.kept])

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
        none, first = torch.zeros(0), self._window.heard_from
        turn = Turn(speaker, text, codes, none, "ended", positions, positions, first, none)
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
        longest = frames_in(settings.max_turn_seconds)
        rows = generator.prompts.fitting_rows(text, speaker, window.prompt_positions, longest)
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
        marked: bool = True,
        speed: float = 1.0,
    ) -> Iterator[Tensor]:
        """Speech for `text` after `context`, as float32 chunks at 24 kHz in order, with the watermark unless it is for
        training or measuring."""
        settings = one_by_one(max_audio_length_ms, temperature, topk, min_p, speed)
        yield from self.conversation(context, seed).speak(text, speaker, settings, marked=marked)

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
        marked: bool = True,
        speed: float = 1.0,
    ) -> Tensor:
        """float32 (num_samples,) at 24 kHz: the concatenation of `stream`."""
        how = max_audio_length_ms, temperature, topk, seed, min_p, marked, speed
        chunks = list(self.stream(text, speaker, context, *how))
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
        options = max_audio_length_ms, temperature, topk
        return conversation.say(text, speaker, *options, min_p=min_p, marked=False).codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (frames, K) -> float32 (1920 frames,) on the CPU, bit for bit what `stream` gave for them."""
        stream, chunks, at, sizes = self.codec.stream(), [], 0, chunk_sizes()
        while at < len(codes):
            chunk = codes[at : at + next(sizes)]
            chunks.append(stream.push(chunk.to(self.device)).cpu())
            at += len(chunk)
        return torch.cat([*chunks, stream.flush().cpu()])

    def words(self, text: str) -> str:
        """A text as the model reads it. Raises `InputError` that names a word which it can't read."""
        return self.tokenizer.words(text)

    def check_lines(self, lines: Iterable[tuple[str, str]]) -> None:
        """Raise `InputError` for the first of some texts that can't be read; what stands before each names it."""
        for name, text in lines:
            try:
                self.words(text)
            except InputError as error:
                raise InputError(f"{name}: {error}", error.code) from error

    def turn_rows(self, text: str, speaker: int) -> Rows:
        """The rows of a turn's text. Raises `InputError` when nothing in it can be spoken."""
        return self.prompts.turn_rows(text, speaker)

    def prompt_rows(self, prompts: list[Segment]) -> Rows:
        """The rows of whole segments, encoded where they come as audio."""
        return self.prompts.rows(prompts)

    def voice_codes(self, voice: Voice) -> Tensor:
        """A voice as the model hears it, int64 (frames, K). Raises `InputError` for a recording that can't be used."""
        codes = voice.codes_for(self.codec_key)
        audio = load_prompt(voice) if codes is None else None
        return self.segment_codes(Segment(0, voice.transcript, audio, codes))

    def segment_codes(self, segment: Segment) -> Tensor:
        """A segment's codes, int64 (frames, K): its own, or its audio's. Raises `InputError` if it has neither."""
        return self.prompts.segment_codes(segment)


def one_by_one(
    max_audio_length_ms: float,
    temperature: float | None,
    topk: int | None,
    min_p: float = 0.0,
    speed: float = 1.0,
) -> Settings:
    """Settings as the original's `generate` takes them, one by one. Raises `InputError`.

    Its longest length knows no bound: no model has positions for more than ours.
    """
    longest_turn(max_audio_length_ms)
    seconds = min(max_audio_length_ms / 1000, ABOUT["max_turn_seconds"].most)
    return Settings(temperature=temperature, topk=topk, max_turn_seconds=seconds, min_p=min_p, speed=speed)
