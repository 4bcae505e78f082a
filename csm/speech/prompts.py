"""Segments and texts as the model reads them: rows of ids, recordings encoded on the way; between script and engine.

A recording is encoded once: its codes are remembered by the hash of its samples, whichever conversation hears it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from csm.codec import Codec, codec_key
from csm.config import FRAME_SIZE, ModelConfig
from csm.engine.frames import Budget, RowFormat, Rows, Segment, id_rows
from csm.errors import InputError
from csm.recent import Recent
from csm.text import Tokenizer

ROOM_FOR_A_TURN = 160  # positions that prompts must leave: a sentence of 100 letters and 5 s of speech
REMEMBERED_TEXTS = 1 << 14, 16 << 20  # how many texts' ids, and their bytes; a sentence has about 1 kB
REMEMBERED = 256, 16 << 20  # how many recordings' codes, and their bytes; 30 s in CSM-1B's codes are 48 kB
REMEMBERED_SPEAKERS = 1024, 4 << 20  # how many embeddings, and their bytes


class Prompts:
    """Texts and recordings to rows, with one model's tokenizer and codec. For any thread."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, codec: Codec, device: torch.device) -> None:
        self.codec_key = codec_key(codec)
        self.codes: Recent[Tensor] = Recent(*REMEMBERED)
        self._embeddings: Recent[Tensor] = Recent(*REMEMBERED_SPEAKERS)
        self._ids: Recent[Tensor] = Recent(*REMEMBERED_TEXTS)
        self._config, self._codec, self._device = config, codec, device
        self.format = RowFormat.of(config, tokenizer)
        self._budget = Budget(config.max_positions)

    def ids(self, text: str, speaker: int) -> Tensor:
        """What a turn's text is to the model, int64 (S,): made once, whoever asks for it and however often."""
        key = f"{speaker} {text.strip()}"
        if (known := self._ids.get(key)) is None:
            known = self.format.ids(text.strip(), speaker)
            self._ids.put(key, known, known.nbytes)
        return known

    def forget_texts(self) -> None:
        """Forget what was read of texts; recordings stay."""
        self._ids.clear()

    def turn_rows(self, text: str, speaker: int) -> Rows:
        """The rows of a turn's text. Raises `InputError` when nothing in it can be spoken."""
        if speaker < 0:
            raise InputError(f"The speaker is {speaker}; speakers are numbered from 0.")
        ids = self.ids(text, speaker)
        if len(ids) <= len(self.ids("", speaker)) or not any(map(str.isalnum, text)):
            raise InputError("There is nothing to say in this turn: write some words.")
        return id_rows(ids, self._config.num_codebooks)

    def fitting_rows(self, text: str, speaker: int, prompts: int, longest: int, name: str = "This turn") -> Rows:
        """`turn_rows` of a turn of at most `longest` frames behind prompts of so many positions. Raises `InputError`,
        which calls it `name`, also when it is too long to fit even alone."""
        rows = self.turn_rows(text, speaker)
        self._budget.check_turn(text, len(rows), prompts, longest, name)
        return rows

    def rows(self, segments: list[Segment]) -> Rows:
        """The rows of whole segments, encoded where they come as audio. Raises `InputError` when one doesn't fit."""
        parts: list[Rows] = []
        for segment in segments:
            used = sum(map(len, parts))
            text = self.turn_rows(segment.text, segment.speaker)
            if segment.audio is not None and segment.codes is None:  # before the encoder spends minutes on an hour
                frames = -(-segment.audio.shape[-1] // FRAME_SIZE)
                self._budget.check_prompt(frames, len(text), used, ROOM_FOR_A_TURN)
            codes = self.segment_codes(segment)
            self._budget.check_prompt(len(codes), len(text), used, ROOM_FOR_A_TURN)
            parts += [text, self.format.spoken(codes, segment.speaker)]
        return Rows.join(parts)

    def segment_codes(self, segment: Segment) -> Tensor:
        """A segment's codes, int64 (frames, K): its own, or its audio's. Raises `InputError` if it has neither."""
        if segment.codes is not None:
            if segment.codes.dim() != 2 or segment.codes.shape[1] != self._config.num_codebooks:
                raise InputError(
                    f"A segment's codes have shape {tuple(segment.codes.shape)}; this model needs "
                    f"(frames, {self._config.num_codebooks})."
                )
            codes = segment.codes.to(torch.int64).cpu()
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self._config.audio_vocab_size:
                raise InputError("A segment has codes that this model doesn't know: they are another model's.")
            return codes
        wave = _sound(segment)
        key = self._key(wave)
        known = self.codes.get(key)
        if known is None:
            known = self._codec.encode(wave.to(self._device)).to("cpu", torch.int32)
            self.codes.put(key, known, known.nbytes)
        return known.to(torch.int64)

    def embedding(self, segment: Segment) -> Tensor | None:
        """A segment's speaker, float32 (D,): its own, or its audio's, or in want of that what can be heard in its
        codes; None for a codec that needs none. Raises `InputError` as `segment_codes` does."""
        if segment.embedding is not None or not self.embeds:
            return segment.embedding
        heard = _sound(segment) if segment.audio is not None else self.segment_codes(segment)
        key = self._key(heard)
        known = self._embeddings.get(key)
        if known is None:
            wave = heard.to(self._device)
            found = self._codec.embed(wave if segment.audio is not None else self._codec.decode(wave))
            assert found is not None
            known = found.cpu()
            self._embeddings.put(key, known, known.nbytes)
        return known

    @property
    def embeds(self) -> bool:
        """Whether the codec is told who speaks."""
        return self._codec.speaker_dim > 0

    def _key(self, sound: Tensor) -> str:
        return hashlib.sha256(self.codec_key.encode() + sound.numpy().tobytes()).hexdigest()


def _sound(segment: Segment) -> Tensor:
    """A segment's audio, float32 (num_samples,) on the CPU. Raises `InputError` where there is none."""
    if segment.audio is None or segment.audio.numel() == 0:
        raise InputError("A context segment has no sound: give it audio or codes.")
    if segment.audio.dim() != 1:
        raise InputError(f"A segment's audio has shape {tuple(segment.audio.shape)}; it must be (num_samples,).")
    return segment.audio.detach().to("cpu", torch.float32).contiguous()
