"""The training speech on disk: int16 waveforms at 24 kHz in shards, and one JSON line an utterance.

`python -m csm train data` writes it (this file), the codec learns from its waveforms, and the language
model from its codes. Nothing here is shipped; everything can be made again from the seed.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr

from csm.errors import InputError
from csm.training.flite import Flite
from csm.training.sentences import normalise, training_sentences

SAMPLE_RATE = 24_000


@dataclass(frozen=True)
class Speaker:
    """A synthetic speaker: a Flite voice, played `pitch` times as fast and spoken that much more slowly,
    so that pitch and vocal tract change and the pace does not."""

    voice: str
    pitch: float = 1.0


SPEAKERS: dict[str, Speaker] = {
    "slt": Speaker("slt"),
    "rms": Speaker("rms"),
    "awb": Speaker("awb"),
    "slt-low": Speaker("slt", 0.85),
    "rms-high": Speaker("rms", 1.18),
}


@dataclass
class Utterance:
    """One clip: where its samples lie, what is said, by whom, and when (seconds from the clip's start)."""

    shard: int
    offset: int
    samples: int
    text: str
    speaker: str
    phones: list[tuple[str, float]] = field(default_factory=list)
    words: list[tuple[int, int, float, float]] = field(default_factory=list)

    @property
    def held_out(self) -> bool:
        """A fixed 1 % of the sentences, in every voice, is never trained on."""
        return zlib.crc32(normalise(self.text).encode()) % 100 == 0


def say(engine: Flite, text: str, name: str, lead: float = 0.04, tail: float = 0.10):
    """Synthesise one clip: float32 (num_samples,) at 24 kHz, its phones and words, edges trimmed to
    `lead` and `tail` seconds of the synthesiser's own pauses."""
    speaker = SPEAKERS[name]
    spoken = engine.speak(text, speaker.voice, stretch=speaker.pitch)
    wave = soxr.resample(spoken.samples.astype(np.float32) / 32768, spoken.sample_rate * speaker.pitch, SAMPLE_RATE)
    scale = 1 / speaker.pitch
    sounded = [i for i, (phone, _) in enumerate(spoken.phones) if phone != "pau"]
    if not sounded:
        raise ValueError(f"Nothing to say in {text!r}.")
    ends = [end * scale for _, end in spoken.phones]
    begin = max(0.0, (ends[sounded[0] - 1] if sounded[0] else 0.0) - lead)
    finish = min(len(wave) / SAMPLE_RATE, ends[sounded[-1]] + tail)
    wave = wave[int(begin * SAMPLE_RATE) : int(finish * SAMPLE_RATE)]
    phones = [
        (phone, round(min(max(end - begin, 0), finish - begin), 3)) for (phone, _), end in zip(spoken.phones, ends)
    ]
    words = [(a, b, round(s * scale - begin, 3), round(e * scale - begin, 3)) for a, b, s, e in spoken.words]
    return wave, phones, words


def _write_shard(job: tuple[Path, int, list[tuple[str, str]]]) -> int:
    folder, shard, lines = job
    index = folder / f"utterances-{shard:03d}.jsonl"
    if index.exists():
        return shard
    engine = Flite()
    waves: list[np.ndarray] = []
    records: list[str] = []
    offset = 0
    for text, name in lines:
        if not any(letter.isalpha() for letter in text):
            continue
        wave, phones, words = say(engine, text, name)
        pcm = np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)
        if not 0.2 * SAMPLE_RATE < len(pcm) < 12 * SAMPLE_RATE:
            continue
        records.append(json.dumps(vars(Utterance(shard, offset, len(pcm), text, name, phones, words))))
        waves.append(pcm)
        offset += len(pcm)
    np.save(folder / f"audio-{shard:03d}.npy", np.concatenate(waves))
    index.write_text("\n".join(records) + "\n")  # last: a shard with an index is whole
    return shard


def synthesise(
    folder: Path,
    phrases: int = 10_000,
    mixes: int = 8_000,
    voices_per_sentence: int = 2,
    seed: int = 1,
    workers: int = 2,
    excluded: frozenset[str] = frozenset(),
) -> Iterator[tuple[int, int]]:
    """Write the training speech into `folder`, skipping shards that are there; yields (shards done, shards).

    `excluded` holds normalised sentences that must stay unheard, such as the evaluation's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = [
        (text, name)
        for text in training_sentences(rng, phrases, mixes)
        if normalise(text) not in excluded
        for name in rng.sample(list(SPEAKERS), voices_per_sentence if len(text.split()) > 2 else 1)
    ]
    rng.shuffle(lines)
    size = 1000
    jobs = [(folder, shard, lines[i : i + size]) for shard, i in enumerate(range(0, len(lines), size))]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_write_shard, jobs), 1):
            yield done, len(jobs)


class Corpus:
    """Random access to the speech that `synthesise` wrote."""

    def __init__(self, folder: Path) -> None:
        self.utterances: list[Utterance] = []
        self._audio: dict[int, np.ndarray] = {}
        for index in sorted(Path(folder).glob("utterances-*.jsonl")):
            shard = int(index.stem.split("-")[1])
            self._audio[shard] = np.load(index.with_name(f"audio-{shard:03d}.npy"), mmap_mode="r")
            self.utterances += [Utterance(**json.loads(line)) for line in index.read_text().splitlines()]
        if not self.utterances:
            raise InputError(f"No training speech in {folder}: run `python -m csm train data` first.")

    def audio(self, utterance: Utterance) -> np.ndarray:
        """int16 (num_samples,) at 24 kHz."""
        return self._audio[utterance.shard][utterance.offset : utterance.offset + utterance.samples]
