"""Text in, speech out: `generate`, `stream`, or a `Conversation` that remembers what was said.

There is one way in which sound is made, `Conversation.speak`; everything else here is its concatenation. Sound that is
heard while it is made gets its watermark there; codes, and what later turns hear of earlier ones, know nothing of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator as Chunks
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from csm.checkpoint import Loaded
from csm.codec import Codec
from csm.config import PRESETS, SAMPLE_RATE, ModelConfig
from csm.engine import Context, Engine, Stream
from csm.engine.frames import Budget, Rows, Segment, frames_in, longest_turn, room_for
from csm.recent import Recent
from csm.settings import USUAL, Settings
from csm.speech.clauses import clauses
from csm.speech.history import ConversationFull, History, Stop, one_by_one, piece_seed
from csm.speech.prompts import Prompts
from csm.speech.sound import Sounding, TurnSound, chunk_sizes
from csm.speech.texts import TextReader
from csm.speech.turn import Piece, Takes, Turn, silence
from csm.speech.voices import Voice, load_prompt, official_voices, shipped_voices
from csm.speech.window import Window
from csm.utterance import PLAIN, Part, Wording

PROMPT_CONTEXTS = 32, 128 << 20  # how many, and their bytes; two voices of 10 s are 11 MB of CSM-1B's KV cache


class Conversation(History):
    """One growing context: prompts first, then turns, each of which hears all that came before.

    A turn prefills its own text and nothing else. A long one is spoken in pieces, each of which hears those before it.
    When the model's positions are full, the oldest pieces leave, the prompts stay where they are, and the pieces that
    stay are prefilled once more behind them; `turns` keeps all. Without `slide` the turn is refused instead.
    `wording` says how texts are worded. Not for use from two threads at once.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: list[Segment],
        seed: int | None,
        slide: bool = True,
        wording: Wording = PLAIN,
    ) -> None:
        self.generator = generator
        self.seed = secrets.randbits(31) if seed is None else seed
        self.slide, self.wording = slide, wording
        super().__init__()
        rows = generator.prompt_rows(prompts) if prompts else None
        self._embeddings = {one.speaker: generator.prompts.embedding(one) for one in reversed(prompts)}
        self._window = Window(generator.engine, rows, self._pieces, generator.prompts.format, generator.prompt_contexts)
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
        for _ in self.stream(
            text, speaker, max_audio_length_ms, temperature, topk, seed, min_p=min_p, marked=marked, speed=speed
        ):
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
        longest = longest_turn(max_audio_length_ms)
        if isinstance(text, str):
            return self.speak(text, speaker, settings, seed, stop, marked, longest)
        return self._speak_clauses(text, speaker, settings, seed, stop, marked, longest)

    def speak(
        self,
        text: str,
        speaker: int,
        settings: Settings = USUAL,
        seed: int | None = None,
        stop: Stop = lambda: False,
        marked: bool = True,
        most_frames: int | None = None,
    ) -> Chunks[Tensor, None, None]:
        """Chunks of float32 samples at 24 kHz as they are made, 0.24 s behind where they are `marked`. The turn is in
        `turns` once the iterator ends; closing the iterator early keeps what was made, as `stopped`, and so does
        `stop`, asked at every frame. A piece lasts no longer than the settings say, and all of them no more than
        `most_frames`.

        The `seed` of the settings is not this turn's: it has `seed`, or else follows from the conversation's. Raises
        `InputError` for a text that can't be spoken or is too long for the model, and `ConversationFull` when the turn
        no longer fits and no other may leave.
        """
        parts = self.generator.parts(text, self.wording)
        lead, left = 0.0, most_frames
        seed = self.seed + len(self.turns) if seed is None else seed
        spoken = [part for part in parts if part.text]
        for part in spoken:
            self._rows(part.text, speaker, settings)
        if not parts[0].text:
            lead = parts[0].pause
            yield silence(lead / settings.speed)
        for number, part in enumerate(spoken):
            yield from self.utter(
                part, speaker, settings, piece_seed(seed, number), stop, marked, onto=number > 0, most_frames=left
            )
            turn, piece = self.turns[-1], self._pieces[-1]
            turn.text, turn.lead = text, lead
            left = None if left is None else left - len(piece.codes)
            if piece.state == "stopped" or left == 0:
                if number + 1 < len(spoken) and piece.state == "ended":
                    piece.state = "capped"
                break
            if piece.pause:
                yield piece.silence

    def utter(
        self,
        part: Part,
        speaker: int,
        settings: Settings,
        seed: int,
        stop: Stop = lambda: False,
        marked: bool = True,
        onto: bool = False,
        most_frames: int | None = None,
    ) -> Chunks[Tensor, None, None]:
        """`speak` for one piece, the silence behind it aside; `onto`: it is a further one of the last turn."""
        generator, context = self.generator, self._context
        sampling = generator.filled(settings)
        prefilled = context.prefilled
        embedding = self._embeddings.get(speaker)
        sound = TurnSound(generator.sounding, marked, sampling.speed, embedding)
        text_positions, longest = self._begin(part.text, speaker, settings)
        longest = longest if most_frames is None else min(longest, most_frames)
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
            speaking.close()  # a batch would go on while the rest is decoded
            if len(ready := sound.finished()):
                yield ready
        finally:
            speaking.close()
            if state != "ended":
                generator.engine.close(context)
            codes = self._codes(frames)
            read, positions = context.prefilled - prefilled, text_positions + len(codes) + 1
            given, unmarked, first = sound.given, sound.unmarked, self._window.heard_from
            how = part.pause, sampling.speed, embedding
            piece = Piece(speaker, part.text, codes, given, state, read, positions, first, unmarked, *how)
            self._append(piece, onto)

    def _speak_clauses(
        self,
        texts: Iterable[str],
        speaker: int,
        settings: Settings,
        seed: int | None,
        stop: Stop,
        marked: bool,
        most_frames: int,
    ) -> Chunks[Tensor, None, None]:
        for number, clause in enumerate(clauses(texts)):
            own = None if seed is None else seed + number
            yield from self.speak(clause, speaker, settings, own, stop, marked, most_frames)
            if self.turns[-1].state == "stopped":
                return

    @contextmanager
    def takes(
        self, part: Part | str, speaker: int, settings: Settings, seeds: Sequence[int], onto: bool = False
    ) -> Iterator[Takes]:
        """Speak one piece once for each seed, side by side in one batch; the block steps them and says which to keep.

        The conversation goes on from that one; without a choice it is as if nothing had been said. What a seed gives
        differs from what it gives alone by no more than rounding does. `onto` as in `utter`. Raises what it raises.
        """
        part = part if isinstance(part, Part) else Part(part)
        generator, context, sampling = self.generator, self._context, self.generator.filled(settings)
        prefilled = context.prefilled
        text_positions, longest = self._begin(part.text, speaker, settings)

        def piece(stream: Stream) -> Piece:
            if stream.error is not None:
                raise stream.error
            codes = self._codes(stream.frames)
            read, positions = context.prefilled - prefilled, text_positions + len(codes) + 1
            embedding = self._embeddings.get(speaker)
            audio, first = generator.decode(codes, embedding), self._window.heard_from
            how = part.pause, 1.0, embedding
            return Piece(speaker, part.text, codes, audio, stream.state, read, positions, first, audio, *how)

        try:
            copies, noises = [context.copy(longest + 1) for _ in seeds], [self._noise(seed) for seed in seeds]
            with generator.engine.speak_side_by_side(copies, sampling, noises, longest) as together:
                takes = Takes(together, piece)
                yield takes
            if takes.kept is None:
                raise RuntimeError("No take was kept.")
            generator.engine.adopt(context, copies[takes.kept], len(takes.turns[takes.kept].codes))
            generator.engine.close(context)
        except BaseException:
            self._window.step_back()
            raise
        self._append(takes.turns[takes.kept], onto)

    def hear(self, text: str, speaker: int, codes: Tensor, onto: bool = False) -> Turn:
        """Take in a turn that was spoken earlier: its codes int64 (frames, K) are read in with the next turn's text.
        One of several pieces is taken in piece by piece, all after the first `onto` it.

        The same turns leave as when it was spoken. Its `audio` stays empty. Raises `ConversationFull` as `stream` does.
        """
        codes = self.generator.segment_codes(Segment(speaker, text, codes=codes))
        rows = self.generator.prompts.turn_rows(text, speaker)
        positions = len(rows) + len(codes) + 1
        if not self.slide and self.positions_used + positions > self.generator.config.max_positions:
            raise self._full(positions)
        if self.slide:
            self._window.make_room(room_for(text, len(rows)))
        none, first = torch.zeros(0), self._window.heard_from
        self._append(Piece(speaker, text, codes, none, "ended", positions, positions, first, none), onto)
        return self.turns[-1]

    def rewind(self, to: Turn | Piece) -> None:
        """Back to before a turn, or before a piece of one: it and what followed are forgotten. Nothing is prefilled
        again, unless pieces had left since then: those that it heard come back with the next turn's text."""
        self._forget(to)
        self._window.step_back()

    def _begin(self, text: str, speaker: int, settings: Settings) -> tuple[int, int]:
        """Make room for a turn, read its text and whatever waits to be read. -> the positions of its text, and how many
        frames it may have."""
        window, longest = self._window, frames_in(settings.max_turn_seconds)
        rows = self._rows(text, speaker, settings)
        if self.slide:
            window.make_room(room_for(text, len(rows)))
        free = window.free - len(rows) - 1
        if free < 1:
            raise self._full(len(rows))
        window.read(rows)
        return len(rows), min(longest, free)

    def _rows(self, text: str, speaker: int, settings: Settings) -> Rows:
        longest = frames_in(settings.max_turn_seconds)
        return self.generator.prompts.fitting_rows(text, speaker, self._window.prompt_positions, longest)

    def _noise(self, seed: int) -> torch.Generator:
        return torch.Generator(self.generator.device).manual_seed(seed)

    def _codes(self, frames: list[Tensor]) -> Tensor:
        return torch.stack(frames).cpu() if frames else torch.zeros(0, self.generator.config.num_codebooks).long()

    def _full(self, needed: int) -> ConversationFull:
        return ConversationFull(
            f"This turn no longer fits: {self.positions_used} of {self.generator.config.max_positions} positions are "
            f"in use and its text needs {needed} more."
        )


class Generator(TextReader):
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
        self.sounding = Sounding(self.codec, self.engine)

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
        self,
        prompts: list[Segment] | None = None,
        seed: int | None = None,
        slide: bool = True,
        wording: Wording = PLAIN,
    ) -> Conversation:
        """A new conversation that begins with `prompts`, one segment or more for each voice.

        It goes on for as long as you like: when the positions are full, its oldest turns are no longer heard. Without
        `slide` all turns stay, and the one that no longer fits raises `ConversationFull`. Raises `InputError` when a
        prompt has no sound, has codes of the wrong shape, or is longer than fits.
        """
        return Conversation(self, list(prompts or []), seed, slide, wording)

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
        longest = longest_turn(max_audio_length_ms)
        yield from self.conversation(context, seed).speak(text, speaker, settings, marked=marked, most_frames=longest)

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

    def decode(self, codes: Tensor, embedding: Tensor | None = None) -> Tensor:
        """codes int64 (frames, K) -> float32 (1920 frames,) on the CPU, bit for bit what `stream` gave for them in the
        voice of the speaker that is embedded so, float32 (D,)."""
        stream, chunks, at, sizes = self.codec.stream(embedding), [], 0, chunk_sizes()
        with self.engine.threads.few():
            while at < len(codes):
                chunk = codes[at : at + next(sizes)]
                chunks.append(stream.push(chunk.to(self.device)).cpu())
                at += len(chunk)
            return torch.cat([*chunks, stream.flush().cpu()])

    def prompt_rows(self, prompts: list[Segment]) -> Rows:
        """The rows of whole segments, encoded where they come as audio."""
        return self.prompts.rows(prompts)

    def prompt(self, voice: Voice, speaker: int = 0) -> Segment:
        """A voice as the model hears it, with its codes and, where the codec is told who speaks, its embedding. Raises
        `InputError` for a recording that can't be used."""
        codes = voice.codes_for(self.codec_key)
        heard = codes is None or self.prompts.embeds
        segment = Segment(speaker, voice.transcript, load_prompt(voice) if heard else None, codes)
        codes, embedding = self.segment_codes(segment), self.prompts.embedding(segment)
        return Segment(speaker, voice.transcript, codes=codes, embedding=embedding)

    def segment_codes(self, segment: Segment) -> Tensor:
        """A segment's codes, int64 (frames, K): its own, or its audio's. Raises `InputError` if it has neither."""
        return self.prompts.segment_codes(segment)
