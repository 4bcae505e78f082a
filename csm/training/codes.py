"""The training speech as codes: encode every clip once, then build conversations of rows from them.

A training row is a conversation packed to a fixed length: a few speakers in random slots, each turn its text,
its frames and the zero frame, exactly as the engine feeds them. So a voice prompt is nothing special: it is an
earlier turn of the same speaker, and the model learns to carry the voice on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csm.codec import Codec, codec_key
from csm.codec.spectral import SpectralCodec
from csm.config import FRAME_RATE, FRAME_SIZE, ModelConfig
from csm.engine.frames import RowFormat, audio_rows
from csm.errors import InputError
from csm.files import whole
from csm.text import ByteTokenizer, Tokenizer
from csm.training.corpus import Corpus, Utterance, speaker_shares
from csm.training.parts import EVERYTHING, Part, agree
from csm.training.run import say
from csm.training.shapes import keep_shape

FRAME_SECONDS = 1 / FRAME_RATE
SLOTS = 8
SENTENCES_IN_A_TURN = (0.6, 0.3, 0.1)  # shares of turns with one, two and three
SPEAKERS_IN_A_ROW = (0.10, 0.45, 0.30, 0.15)  # shares of conversations with one to four
MOST_TRIED = 8  # conversations for one that fits
ANSWERED = 0.8  # share of turns that another speaker takes next
MOST_WORDS = 6  # of a clip in a spliced turn
CONFUSED = 0.1  # share of turns that are heard in a foreign voice, where the speaker's own was heard before


def frames_of(utterance: Utterance) -> int:
    return -(-utterance.samples // FRAME_SIZE)


def _encoded(codec: Codec, waves: Tensor) -> Tensor:
    """float32 (B, 1920 frames) at 24 kHz -> int64 (B, frames, K); the light codec takes all clips at once."""
    if isinstance(codec.module, SpectralCodec):
        return codec.module.encode(waves).transpose(1, 2)
    return torch.stack([codec.encode(wave) for wave in waves])


@torch.inference_mode()
def encode_corpus(
    corpus: Corpus,
    codec: Codec,
    folder: Path,
    device: torch.device | str = "cpu",
    batch: int = 16,
    report=say,
    part: Part = EVERYTHING,
) -> None:
    """Write `codes-NNN.npy`, int16 (frames, K), for each shard's clips one after another, and whose codes they are: of
    all shards those of this `part`.

    Skips finished shards. Raises `InputError` for a folder with another codec's codes.
    """
    keep_shape(folder, codec.config)
    agree(folder, "codec", codec_key(codec, encoding=True))
    codec.module.to(device)
    shards = sorted({u.shard for u in corpus.utterances if u.shard in part})
    for done, shard in enumerate(shards, 1):
        target = folder / f"codes-{shard:03d}.npy"
        if target.exists():
            continue
        clips = [u for u in corpus.utterances if u.shard == shard]
        by_length = sorted(range(len(clips)), key=lambda i: clips[i].samples)
        codes: dict[int, np.ndarray] = {}
        for start in range(0, len(clips), batch):
            chosen = by_length[start : start + batch]
            longest = max(frames_of(clips[i]) for i in chosen)
            waves = np.zeros((len(chosen), longest * FRAME_SIZE), np.float32)
            for row, i in enumerate(chosen):
                waves[row, : clips[i].samples] = corpus.audio(clips[i]).astype(np.float32) / 32768
            made = _encoded(codec, torch.from_numpy(waves).to(device)).cpu().numpy().astype(np.int16)
            for row, i in enumerate(chosen):
                codes[i] = made[row, : frames_of(clips[i])]
        with whole(target) as written, written.open("wb") as file:
            np.save(file, np.concatenate([codes[i] for i in range(len(clips))]))
        report(f"encoded shard {shard}, {done} of {len(shards)}")


@dataclass
class Clip:
    """One clip ready for packing: its text, its codes int16 (frames + 1, K) with the zero frame, and for each frame
    the first and last text id being spoken (-1 where unknown). `cuts`: where words begin, (letter, frame), if
    turns are spliced."""

    speaker: str
    text: str
    codes: Tensor
    guide: np.ndarray
    cuts: Sequence[tuple[int, int]] = ()

    def part(self, first: int, last: int | None) -> Clip:
        """From the cut `first` to before the cut `last`, None: to the end with its zero frame."""
        letter, frame = self.cuts[first]
        end, until = (None, None) if last is None else self.cuts[last]
        text, guide = self.text[letter:end].rstrip(), self.guide[frame:until] - letter
        return Clip(self.speaker, text, self.codes[frame:until], guide)


@dataclass(frozen=True)
class Batch:
    """ids int64 and mask bool (B, S, K+1). For the frame that each row predicts, int64 (B, S, 2), first and last row of
    the text being spoken (`guide`) and of the sound of the speaker's turn before (`voice`), or -1 where unknown.
    `confused` bool (B, S): frames that are to be heard in a foreign voice."""

    ids: Tensor
    mask: Tensor
    guide: Tensor
    voice: Tensor
    confused: Tensor

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, **known: Tensor) -> Batch:
        """A batch of which nothing is known but what is given."""
        unknown = torch.full((*ids.shape[:2], 2), -1)
        nowhere = torch.zeros(ids.shape[:2], dtype=torch.bool)
        return cls(ids, mask, **{"guide": unknown, "voice": unknown, "confused": nowhere, **known})


def spoken_text(utterance: Utterance, frames: int, prefix: int) -> np.ndarray:
    """int64 (frames + 1, 2): first and last text position (counted from the turn's BOS) of each frame's speech.

    `prefix` ids come before the text: BOS and the slot. Within a word, letters are spread evenly over its time.
    The zero frame looks at the end of the text.
    """
    times = np.arange(frames + 1) * FRAME_SECONDS
    anchors, places = [0.0], [0.0]
    for first, last, start, end in utterance.words:
        if start >= anchors[-1] and end > start:
            anchors += [start + 1e-4, end]
            places += [first, last]
    begin = np.interp(times, anchors, places)
    finish = np.interp(times + FRAME_SECONDS, anchors, places)
    guide = np.stack([np.floor(begin) - 1, np.ceil(finish) + 1], axis=1).clip(0, len(utterance.text)) + prefix
    return guide.astype(np.int64)


def cuts_of(utterance: Utterance, frames: int) -> list[tuple[int, int]]:
    """(letter, frame) where each word begins, of those that are known; the first word begins where the clip does."""
    starts = [(first, round(start / FRAME_SECONDS)) for first, _, start, _ in utterance.words[1:]]
    return [(0, 0), *((letter, frame) for letter, frame in starts if 0 < frame < frames)]


def _read_codes(folder: Path, shard: int, config: ModelConfig) -> np.ndarray | None:
    path = folder / f"codes-{shard:03d}.npy"
    if not path.exists():
        return None
    try:
        codes = np.load(path)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"The codes in {path.name} can't be read ({error}): remove it and encode again.") from error
    if codes.ndim != 2 or codes.shape[1] != config.num_codebooks or codes.max(initial=0) >= config.audio_vocab_size:
        raise InputError(
            f"The codes in {path.name} are another codec's: this model has {config.num_codebooks} codebooks of "
            f"{config.codec.codebook_size}. Encode the speech with the model's codec."
        )
    return codes


class Conversations:
    """Random packed conversations from encoded clips; `batch(step)` is a function of the seed and the step."""

    def __init__(
        self,
        corpus: Corpus,
        folder: Path,
        tokenizer: Tokenizer,
        config: ModelConfig,
        held_out: bool = False,
        seed: int = 1,
        spliced: float = 0.0,
    ) -> None:
        """Clips without codes are left out. `spliced` is the part of the turns that are made of words of several clips
        of the speaker: where there are few texts, nothing else keeps them from being known by heart.

        Raises `InputError` when no clip has codes, or they are another model's.
        """
        self.format, self.seed, self.spliced = RowFormat.of(config, tokenizer), seed, spliced
        self.clips: dict[str, list[Clip]] = {}
        shards = {shard: _read_codes(folder, shard, config) for shard in sorted({u.shard for u in corpus.utterances})}
        offsets = dict.fromkeys(shards, 0)
        zero = torch.zeros(1, config.num_codebooks, dtype=torch.int16)
        for utterance in corpus.utterances:
            codes = shards[utterance.shard]
            if codes is None:
                continue
            start, frames = offsets[utterance.shard], frames_of(utterance)
            offsets[utterance.shard] = start + frames
            if start + frames > len(codes):
                raise InputError(f"The codes in {folder.name} are not of this speech: make them again.")
            if utterance.held_out == held_out:
                ended = torch.cat([torch.from_numpy(codes[start : start + frames]), zero])
                guide = spoken_text(utterance, frames, 1 + len("[0]"))
                cuts = cuts_of(utterance, frames) if spliced else ()
                clip = Clip(utterance.speaker, utterance.text, ended, guide, cuts)
                self.clips.setdefault(utterance.speaker, []).append(clip)
        if not self.clips:
            raise InputError(f"No codes of this speech in {folder}: run `python -m csm train codes` first.")
        self._shares = speaker_shares(self.clips)

    def _turn(self, rng: np.random.Generator, clips: list[Clip]) -> Clip:
        """One clip, or two or three of the same speaker said in one breath: people's turns have several sentences."""
        if self.spliced and rng.random() < self.spliced:
            return _joined(_pieces(rng, clips), ended=False)
        count = 1 + int(rng.choice(3, p=SENTENCES_IN_A_TURN))
        return _joined([clips[i] for i in rng.integers(len(clips), size=count)])

    def _conversation(self, rng: np.random.Generator, length: int) -> _Row:
        """Turns of one to four speakers, any as likely as another, each of whom mostly answers somebody else."""
        row = _Row(self.format, length)
        count = min(len(self.clips), 1 + int(rng.choice(4, p=SPEAKERS_IN_A_ROW)))
        names = rng.choice(list(self.clips), size=count, replace=False, p=self._shares)
        slots = rng.permutation(SLOTS if rng.random() < 0.5 else count)
        who, misses = int(rng.integers(count)), 0
        while misses < 4:
            clip = self._turn(rng, self.clips[names[who]])
            misses += not row.add(clip, int(slots[who]), confused=rng.random() < CONFUSED)
            others = [other for other in range(count) if other != who]
            who = int(rng.choice(others)) if others and rng.random() < ANSWERED else int(rng.integers(count))
        return row

    def batch(self, step: int, rows: int, length: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        return _batch([self._conversation(rng, length) for _ in range(rows)])

    def trials(self, number: int, rows: int, length: int = 512) -> tuple[Batch, Batch, Tensor] | None:
        """Whether voices are bound to slots: two prompts of different voices, then a turn of one of them, under its own
        slot and under the other's; and bool (B, S), the frames of those turns.

        Neither the order of the prompts nor the text tells whose turn it is: only the slot does. None where there are
        no two speakers, or their turns are too long.
        """
        rng = np.random.default_rng((self.seed, number, 5))
        right: list[_Row] = []
        swapped: list[_Row] = []
        starts: list[int] = []
        if len(self.clips) < 2:
            return None
        for _ in range(MOST_TRIED * rows):
            if len(right) == rows:
                break
            names = rng.choice(list(self.clips), size=2, replace=False, p=self._shares)
            chosen = [self.clips[name][int(rng.integers(len(self.clips[name])))] for name in (*names, names[0])]
            slots, order = rng.permutation(SLOTS)[:2].tolist(), rng.permutation(2)
            pair = [_Row(self.format, length) for _ in range(2)]
            if not all(row.add(chosen[who], slots[who]) for row in pair for who in order):
                continue
            start = pair[0].at
            if pair[0].add(chosen[2], slots[0]) and pair[1].add(chosen[2], slots[1]):
                right.append(pair[0])
                swapped.append(pair[1])
                starts.append(start)
        if not right:
            return None
        one, other = _batch(right), _batch(swapped)
        asked = one.mask[..., 0] & (torch.arange(length) >= torch.tensor(starts)[:, None])
        return one, other, asked


def _joined(clips: Sequence[Clip], ended: bool = True) -> Clip:
    """One turn of what is said one after another; `ended`: each of them has its zero frame, and only the last keeps
    it."""
    text, codes, guides = clips[0].text, [clips[0].codes], [clips[0].guide]
    for clip in clips[1:]:
        if ended:
            codes[-1], guides[-1] = codes[-1][:-1], guides[-1][:-1]
        codes.append(clip.codes)
        guides.append(clip.guide + len(text) + 1)
        text = f"{text} {clip.text}"
    return Clip(clips[0].speaker, text, torch.cat(codes), np.concatenate(guides))


def _pieces(rng: np.random.Generator, clips: Sequence[Clip]) -> list[Clip]:
    """Words of up to four clips: a turn that begins as one of them does, goes on as others do and ends as one does."""
    pieces: list[Clip] = []
    chosen = [clips[i] for i in rng.integers(len(clips), size=int(rng.integers(2, 5)))]
    for at, clip in enumerate(chosen):
        cuts, ending = len(clip.cuts), at == len(chosen) - 1
        first = int(rng.integers(1, cuts)) if pieces and cuts > 1 else 0
        if ending:
            pieces.append(clip.part(first, None))
        elif first + 1 < cuts:
            pieces.append(clip.part(first, int(rng.integers(first + 1, min(cuts, first + MOST_WORDS + 1)))))
    return pieces


class _Row:
    """One row of training: turns packed one after the other, and what is known of each position."""

    def __init__(self, written: RowFormat, length: int) -> None:
        self.ids = np.zeros((length, written.num_codebooks + 1), np.int64)
        self.mask = np.zeros((length, written.num_codebooks + 1), bool)
        self.guide, self.voice = np.full((2, length, 2), -1, np.int64)
        self.confused = np.zeros(length, bool)
        self.at = 0
        self._format = written
        # Then words' places in the text are places in the rows.
        self._letters = isinstance(written.tokenizer, ByteTokenizer)
        self._heard: dict[int, tuple[int, int]] = {}  # by slot: where the speaker's newest turn sounds

    def add(self, clip: Clip, slot: int, confused: bool = False) -> bool:
        """Put a turn at the end; False where it doesn't fit. A `confused` one is to be heard in a foreign voice, and
        tells nobody how its speaker sounds."""
        text, sound = self._format.text(clip.text, slot), audio_rows(clip.codes.long(), self._format.slot_id(slot))
        t, f, at = len(text), len(sound), self.at
        if at + t + f > len(self.ids):
            return False
        speaking = slice(at + t - 1, at + t + f - 1)
        self.ids[at : at + t], self.mask[at : at + t] = text.ids, text.mask
        self.ids[at + t : at + t + f], self.mask[at + t : at + t + f] = sound.ids, sound.mask
        if self._letters and t == len(clip.text) + len(self._format.text("", slot)):
            self.guide[speaking] = at + clip.guide
        self.voice[speaking] = self._heard.get(slot, (-1, -1))
        if confused and slot in self._heard:
            self.confused[at + t : at + t + f - 1] = True
        else:
            self._heard[slot] = at + t, at + t + f - 2  # all but the zero frame
        self.at += t + f
        return True


def _batch(rows: list[_Row]) -> Batch:
    def column(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))

    return Batch(*(column(field.name) for field in fields(Batch)))
