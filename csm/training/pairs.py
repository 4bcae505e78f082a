"""Pairs to learn speakers from: what a recipe's voice says, as codes, and how a natural one says the same.

The language model speaks in the voices of the recipe, and the decoder is to make others of them. So a voice of the
recipe says each natural clip's text, and the clip's speaker says it again at the same times and with the same melody
(csm/training/dubbing.py): then whatever differs is the speaker (`python -m csm train pairs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from csm.codec import Codec, codec_key
from csm.codec.pitch import pitch
from csm.codec.spectral import HOP
from csm.config import FRAME_SIZE
from csm.errors import InputError
from csm.files import whole
from csm.training.codec import other_speed
from csm.training.corpus import (
    BASE_SPEAKERS,
    SAMPLE_RATE,
    SPEAKERS,
    Corpus,
    Engine,
    Utterance,
    levelled,
    pcm_of,
    played,
    say,
)
from csm.training.dubbing import Dubber
from csm.training.kokoro import MODEL_SHA256, Styles
from csm.training.parts import EVERYTHING, Part, agree, digest, unwritten
from csm.training.shapes import keep_shape

PEOPLE = 2  # that each speaker of the natural speech becomes, by turns, as it is or played faster or slower
AS_MADE = 0.4  # share of them that are as they were made
SHIPPED = 0.7  # share of the pairs whose source is one of the recipe's voices as it is


@dataclass(frozen=True)
class Pair:
    """A natural clip, how much faster than it was made it is played, codes int16 (frames, K) of another voice that says
    its text, and how its own speaker says the same at the same time: int16 (1920 frames,)."""

    clip: Utterance
    speed: float
    codes: np.ndarray
    dubbed: np.ndarray

    @property
    def speaker(self) -> str:
        """Faster is somebody else: pitch and vocal tract change."""
        return f"{self.clip.speaker}*{self.speed:.3f}"

    def natural(self, corpus: Corpus) -> np.ndarray:
        """The clip as its speaker said it, at the recipe's level, float32 (num_samples,)."""
        return levelled(played(corpus.audio(self.clip).astype(np.float32) / 32768, self.speed))


def read_pairs(corpus: Corpus, folder: Path) -> list[Pair]:
    """What `make_pairs` wrote for the clips of `corpus`. Raises `InputError` where there is none."""
    pairs = []
    by_shard: dict[int, list[Utterance]] = {}
    for clip in corpus.utterances:
        by_shard.setdefault(clip.shard, []).append(clip)
    for file in sorted(folder.glob("pairs-*.npz")):
        clips = by_shard.get(int(file.stem.split("-")[1]))
        if clips is None:
            continue
        try:
            waves = np.load(file.with_suffix(".npy"), mmap_mode="r")
            with np.load(file) as kept:
                codes, counts, speeds = kept["codes"], kept["frames"], kept["speeds"]
            if len(waves) != len(codes) * FRAME_SIZE or counts.sum() != len(codes):
                raise ValueError("it is cut short")
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"The pairs in {folder} are damaged at {file.name} ({error}): remove that file and run `python -m csm "
                "train pairs` again."
            ) from error
        for clip, speed, end, count in zip(clips, speeds, np.cumsum(counts), counts):
            if count:
                sound = waves[(end - count) * FRAME_SIZE : end * FRAME_SIZE]
                pairs.append(Pair(clip, float(speed), codes[end - count : end], sound))
    if not pairs:
        raise InputError(f"No pairs in {folder}: run `python -m csm train pairs` first.")
    return pairs


def make_pairs(
    corpus: Corpus,
    engines: Mapping[str, Engine],
    teacher: Dubber,
    styles: Styles,
    codec: Codec,
    folder: Path,
    seed: int = 1,
    part: Part = EVERYTHING,
) -> Iterator[str]:
    """Write `pairs-NNN.npz`, and their sound beside them, for each shard of natural speech, of these those of this
    `part`, and yield a line for each; what is there is kept. Raises `InputError` for a folder of another codec's."""
    keep_shape(folder, codec.config)
    agree(folder, "codec", codec_key(codec, encoding=True))
    agree(folder, "dubbed", digest([MODEL_SHA256, str(seed)]))
    shards = sorted({clip.shard for clip in corpus.utterances if clip.shard in part})
    for done, shard in enumerate(shards, 1):
        file = folder / f"pairs-{shard:03d}.npz"
        if file.exists() and file.with_suffix(".npy").exists():
            continue
        rng = np.random.default_rng((seed, shard))
        people: dict[tuple[str, int], float] = {}
        speeds = []
        codes, waves, lost = [], [], 0
        clips = [clip for clip in corpus.utterances if clip.shard == shard]
        said: Counter[str] = Counter()
        for clip in clips:
            who = clip.speaker, said[clip.speaker] % PEOPLE
            said[clip.speaker] += 1
            speeds.append(people.setdefault(who, 1.0 if rng.random() < AS_MADE else other_speed(rng)))
            source = str(rng.choice(list(BASE_SPEAKERS if rng.random() < SHIPPED else SPEAKERS)))
            own: np.ndarray = np.zeros((0, codec.num_codebooks), np.int16)
            sound: np.ndarray = np.zeros(0, np.int16)
            style = styles.of(clip.origin)
            try:
                wave, phones, _ = say(engines, clip.text, source)
                melody = pitch(torch.from_numpy(wave)[None], HOP)[0][0].numpy()
                dubbed = teacher.dub(clip.text, style, phones, melody, len(wave) / SAMPLE_RATE, speeds[-1])
                own = codec.encode(torch.from_numpy(wave)).numpy().astype(np.int16)
                sound = np.pad(pcm_of(levelled(dubbed)), (0, len(own) * FRAME_SIZE))[: len(own) * FRAME_SIZE]
            except (ValueError, OSError):  # nothing to say, or nothing that sounds
                lost += 1
            codes.append(own)
            waves.append(sound)
        made = {
            "codes": np.concatenate(codes),
            "frames": np.array([len(one) for one in codes]),
            "speeds": np.array(speeds, np.float32),
        }
        try:
            with whole(file.with_suffix(".npy")) as written, written.open("wb") as out:
                np.save(out, np.concatenate(waves))
            with whole(file) as written, written.open("wb") as out:  # last: a shard with codes is whole
                np.savez(out, **made)
        except OSError as error:
            raise InputError(unwritten("pairs", folder, error)) from error
        yield f"shard {shard}: {len(clips) - lost} pairs, {lost} clips left out; {done} of {len(shards)}"
