"""Pairs to learn speakers from: what a recipe's voice says, as codes, and how a natural one says the same.

The language model speaks in the voices of the recipe, and the decoder is to make others of them. So a voice of the
recipe says each natural clip's text and is moved, by WORLD's parameters, to the times and the melody of the clip: then
whatever differs is the speaker (`python -m csm train pairs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from csm.codec import Codec, codec_key
from csm.config import FRAME_SIZE
from csm.errors import InputError
from csm.files import whole
from csm.training.alignment import STEP, match, spectrum
from csm.training.codec import other_speed
from csm.training.corpus import BASE_SPEAKERS, SAMPLE_RATE, SPEAKERS, Corpus, Engine, Utterance, levelled, pcm_of, say
from csm.training.parts import EVERYTHING, Part, agree
from csm.training.shapes import keep_shape

AS_MADE = 0.4  # share of the speakers that are heard as they were made, and not faster or slower
SHIPPED = 0.7  # share of the pairs whose source is one of the recipe's voices as it is
PERIOD = 5.0  # milliseconds from one set of WORLD's parameters to the next
HOP = SAMPLE_RATE // 200
LOUDER = 12.0  # dB that a moment of the source may be raised or lowered to be as loud as the clip's
SLACK = 0.6  # seconds that two clips may be apart, once they are equally long


@dataclass(frozen=True)
class Pair:
    """A natural clip, how much faster than it was made it is played, and codes int16 (frames, K) of another voice that
    says the same at the same time."""

    clip: Utterance
    speed: float
    codes: np.ndarray

    @property
    def speaker(self) -> str:
        """Faster is somebody else: pitch and vocal tract change."""
        return f"{self.clip.speaker}*{self.speed:.3f}"

    def wave(self, corpus: Corpus) -> np.ndarray:
        """Its sound, float32 (1920 frames,)."""
        wave = played(corpus, self.clip, self.speed)
        size = len(self.codes) * FRAME_SIZE
        return np.pad(wave[:size], (0, max(0, size - len(wave))))


def played(corpus: Corpus, clip: Utterance, speed: float) -> np.ndarray:
    """A clip at the recipe's level, `speed` times as fast, float32 (num_samples,)."""
    wave = corpus.audio(clip).astype(np.float32) / 32768
    if speed != 1:
        wave = soxr.resample(wave, SAMPLE_RATE * speed, SAMPLE_RATE)
    return levelled(wave)


def read_pairs(corpus: Corpus, folder: Path) -> list[Pair]:
    """What `make_pairs` wrote for the clips of `corpus`. Raises `InputError` where there is none."""
    pairs = []
    by_shard: dict[int, list[Utterance]] = {}
    for clip in corpus.utterances:
        by_shard.setdefault(clip.shard, []).append(clip)
    for shard, clips in by_shard.items():
        file = folder / f"pairs-{shard:03d}.npz"
        if not file.exists():
            continue
        with np.load(file) as kept:
            codes = np.split(kept["codes"], np.cumsum(kept["frames"])[:-1])
            pairs += [
                Pair(clip, float(speed), own) for clip, speed, own in zip(clips, kept["speeds"], codes) if len(own)
            ]
    if not pairs:
        raise InputError(f"No pairs in {folder}: run `python -m csm train pairs` first.")
    return pairs


def make_pairs(
    corpus: Corpus,
    engines: Mapping[str, Engine],
    codec: Codec,
    folder: Path,
    seed: int = 1,
    part: Part = EVERYTHING,
) -> Iterator[str]:
    """Write `pairs-NNN.npz` for each shard of natural speech, of these those of this `part`, and yield a line for each;
    what is there is kept. Raises `InputError` for a folder of another codec's, and where pyworld is missing."""
    world = _world()
    keep_shape(folder, codec.config)
    agree(folder, "codec", codec_key(codec, encoding=True))
    shards = sorted({clip.shard for clip in corpus.utterances if clip.shard in part})
    for done, shard in enumerate(shards, 1):
        file = folder / f"pairs-{shard:03d}.npz"
        if file.exists():
            continue
        rng = np.random.default_rng((seed, shard))
        speeds: dict[str, float] = {}
        codes, lost = [], 0
        clips = [clip for clip in corpus.utterances if clip.shard == shard]
        for clip in clips:
            speed = speeds.setdefault(clip.speaker, 1.0 if rng.random() < AS_MADE else other_speed(rng))
            source = str(rng.choice(list(BASE_SPEAKERS if rng.random() < SHIPPED else SPEAKERS)))
            try:
                said = moved(world, say(engines, clip.text, source)[0], played(corpus, clip, speed))
            except (ValueError, OSError):  # nothing to say, or nothing that sounds
                codes.append(np.zeros((0, codec.num_codebooks), np.int16))
                lost += 1
                continue
            codes.append(codec.encode(torch.from_numpy(said)).numpy().astype(np.int16))
        with whole(file) as written, written.open("wb") as out:
            np.savez(
                out,
                codes=np.concatenate(codes),
                frames=np.array([len(one) for one in codes]),
                speeds=np.array([speeds[clip.speaker] for clip in clips], np.float32),
            )
        yield f"shard {shard}: {len(clips) - lost} pairs, {lost} clips left out; {done} of {len(shards)}"


def moved(world: Any, source: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """`source` at the times, with the melody and as loud as `clip`, which says the same: float32, as long as `clip`.

    It keeps its own register, its voicing and its timbre. Raises `ValueError` where one of them has no voice in it.
    """
    count = len(clip) // HOP + 1
    ours, theirs = spectrum(pcm_of(clip), SAMPLE_RATE), spectrum(pcm_of(source), SAMPLE_RATE)
    width = np.full(len(ours), SLACK / STEP)
    path = match(ours, theirs, np.arange(len(ours)) * len(theirs) / len(ours), width)
    there = _smooth(np.interp(np.arange(count) * PERIOD / 1000, np.arange(len(ours)) * STEP, path * STEP), 5)
    source, clip = source.astype(np.float64), clip.astype(np.float64)
    hertz, times = _melody(world, source)
    wanted, _ = _melody(world, clip)
    if min((hertz > 0).sum(), (wanted[:count] > 0).sum()) < 10:
        raise ValueError("There is no voice in it.")
    envelope, breath = world.cheaptrick(source, hertz, times, SAMPLE_RATE), world.d4c(source, hertz, times, SAMPLE_RATE)
    place = np.clip(there / (PERIOD / 1000), 0, len(hertz) - 1.001)
    first, share = place.astype(int), (place % 1)[:, None]
    logs = np.log(envelope + 1e-12)
    envelope = np.exp((1 - share) * logs[first] + share * logs[first + 1])
    breath = (1 - share) * breath[first] + share * breath[first + 1]
    voiced = np.flatnonzero(wanted[:count] > 0)
    octaves = np.log(wanted[voiced])
    register = np.log(hertz[hertz > 0]).mean() - octaves.mean()
    melody = np.exp(np.interp(np.arange(count), voiced, octaves) + register)
    melody[hertz[np.round(place).astype(int)] == 0] = 0
    made = world.synthesize(melody, np.ascontiguousarray(envelope), np.ascontiguousarray(breath), SAMPLE_RATE, PERIOD)
    made = np.pad(made[: len(clip)], (0, max(0, len(clip) - len(made))))
    gain = _smooth(np.clip(20 * np.log10(_level(clip, count) / _level(made, count)), -LOUDER, LOUDER), 8)
    made *= 10 ** (np.interp(np.arange(len(made)), np.arange(count) * HOP, gain) / 20)
    return levelled(made.astype(np.float32))


def _melody(world: Any, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pitch in Hz (0: unvoiced) every 5 ms, and the times of that."""
    rough, times = world.dio(wave, SAMPLE_RATE, f0_floor=60.0, f0_ceil=500.0, frame_period=PERIOD)
    return world.stonemask(wave, rough, times, SAMPLE_RATE), times


def _level(wave: np.ndarray, count: int) -> np.ndarray:
    """Root mean square of 20 ms around every fifth millisecond: float64 (count,)."""
    sums = np.concatenate([[0], np.cumsum(np.pad(wave**2, 2 * HOP))])
    at = np.minimum(np.arange(count) * HOP, len(sums) - 4 * HOP - 1)
    return np.sqrt((sums[at + 4 * HOP] - sums[at]) / (4 * HOP) + 1e-9)


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    kernel = np.ones(2 * reach + 1) / (2 * reach + 1)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel, "valid")


def _world() -> Any:
    try:
        import pyworld
    except ImportError as error:
        raise InputError("Pairs are made with WORLD: run `pip install pyworld`.") from error
    return pyworld
