"""The training speech on disk: int16 waveforms at 24 kHz in shards, and one JSON line an utterance.

`python -m csm train data` writes it (this file), the codec learns from its waveforms, and the language
model from its codes. Nothing here is shipped; everything can be made again from the seed.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr

from csm.errors import InputError
from csm.files import whole
from csm.training.flite import Flite, Phones, Spoken, Words
from csm.training.parts import EVERYTHING, Part, agree, digest
from csm.training.rhvoice import RHVoice
from csm.training.sentences import training_sentences, wording

SAMPLE_RATE = 24_000
LEVEL = -23.0  # dB below full scale: root mean square of the speech in every clip
PEAK = 0.95
SHORTEST, LONGEST = 0.2, 12.0  # seconds
LINES_A_SHARD = 1000


class Engine(Protocol):
    """A synthesiser with several voices."""

    def speak(self, text: str, voice: str, rate: float = 1.0) -> Spoken: ...


@dataclass(frozen=True)
class Speaker:
    """A synthetic speaker: a voice of "flite" or "rhvoice", played `pitch` times as fast and spoken that much
    more slowly, so that pitch and vocal tract change and the pace does not."""

    engine: str
    voice: str
    pitch: float = 1.0


BASE_SPEAKERS: dict[str, Speaker] = {voice: Speaker("rhvoice", voice) for voice in ("slt", "clb", "bdl", "ksp")} | {
    voice: Speaker("flite", voice) for voice in ("rms", "awb")
}
SHIFTS = (0.82, 0.90, 1.10, 1.21)
SPEAKERS: dict[str, Speaker] = BASE_SPEAKERS | {
    f"{name}*{shift:.2f}": replace(speaker, pitch=shift) for name, speaker in BASE_SPEAKERS.items() for shift in SHIFTS
}


def load_engines(rhvoice: Path | None = None, report: Callable[[str], object] | None = None) -> dict[str, Engine]:
    """The synthesisers by name; `rhvoice` is the prefix that RHVoice was installed in.

    Raises `InputError` when one is not installed, or with `report` leaves it out and reports why.
    """
    engines: dict[str, Engine] = {}
    makers: dict[str, Callable[[], Engine]] = {"flite": Flite, "rhvoice": lambda: RHVoice(rhvoice)}
    for name, maker in makers.items():
        try:
            engines[name] = maker()
        except InputError as error:
            if report is None:
                raise
            report(str(error))
    return engines


@dataclass
class Utterance:
    """One clip: where its samples lie, what is said, by whom, and when (seconds from the clip's start); `origin` tells
    what a mixed voice is made of."""

    shard: int
    offset: int
    samples: int
    text: str
    speaker: str
    phones: list[tuple[str, float]] = field(default_factory=list)
    words: list[tuple[int, int, float, float]] = field(default_factory=list)
    origin: str = ""

    @property
    def held_out(self) -> bool:
        """A fixed 1 % of the sentences, in every voice, is never trained on."""
        return zlib.crc32(wording(self.text).encode()) % 100 == 0


def say(
    engines: Mapping[str, Engine], text: str, name: str, lead: float = 0.04, tail: float = 0.10
) -> tuple[np.ndarray, Phones, Words]:
    """Synthesise one clip: float32 (num_samples,) at 24 kHz, its phones and words, edges trimmed to
    `lead` and `tail` seconds of the synthesiser's own pauses.

    Raises `ValueError` when there is nothing in `text` to say, `KeyError` when the speaker's engine is not there.
    """
    speaker = SPEAKERS[name]
    spoken = engines[speaker.engine].speak(text, speaker.voice, 1 / speaker.pitch)
    sounded = [i for i, (phone, _) in enumerate(spoken.phones) if phone != "pau"]
    if not sounded:
        raise ValueError(f"Nothing to say in {text!r}.")
    wave = spoken.samples.astype(np.float32) / 32768
    if (rate := spoken.sample_rate * speaker.pitch) != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE)
    scale = 1 / speaker.pitch
    ends = [end * scale for _, end in spoken.phones]
    begin = max(0.0, (ends[sounded[0] - 1] if sounded[0] else 0.0) - lead)
    finish = min(len(wave) / SAMPLE_RATE, ends[sounded[-1]] + tail)
    wave = levelled(wave[int(begin * SAMPLE_RATE) : int(finish * SAMPLE_RATE)])
    phones = [
        (phone, round(min(max(end - begin, 0), finish - begin), 3)) for (phone, _), end in zip(spoken.phones, ends)
    ]
    words = [(a, b, round(s * scale - begin, 3), round(e * scale - begin, 3)) for a, b, s, e in spoken.words]
    return wave, phones, words


def levelled(wave: np.ndarray) -> np.ndarray:
    """`wave` (num_samples,) with its speech at `LEVEL`, all engines equally loud: pauses do not count, and a
    peak above `PEAK` is not made for it."""
    step = SAMPLE_RATE // 50
    if len(wave) < step:
        return wave
    powers = np.square(wave[: len(wave) // step * step].reshape(-1, step)).mean(1)
    spoken = powers[powers > powers.max() / 1000]  # within 30 dB of the loudest 20 ms
    if not len(spoken):
        return wave
    return wave * min(10 ** (LEVEL / 20) / np.sqrt(spoken.mean()), PEAK / np.abs(wave).max())


def played(wave: np.ndarray, speed: float, quality: str = "HQ") -> np.ndarray:
    """`wave` (num_samples,) played `speed` times as fast: pitch, vocal tract and pace change together, as somebody
    else's."""
    return wave if speed == 1 else soxr.resample(wave, SAMPLE_RATE * speed, SAMPLE_RATE, quality=quality)


def pcm_of(wave: np.ndarray) -> np.ndarray:
    """A waveform (num_samples,) as int16, as shards keep it."""
    return np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)


def _write_shard(job: tuple[Path, int, list[tuple[str, str]], Path | None]) -> tuple[int, int, float]:
    """Shard number, lines left out, seconds of speech."""
    folder, shard, lines, rhvoice = job
    index = folder / f"utterances-{shard:03d}.jsonl"
    if index.exists():
        return shard, 0, 0.0
    engines = load_engines(rhvoice)
    waves: list[np.ndarray] = []
    records: list[str] = []
    offset = 0
    for text, name in lines:
        try:
            wave, phones, words = say(engines, text, name)
        except (ValueError, OSError):
            continue
        pcm = pcm_of(wave)
        if not words or not SHORTEST * SAMPLE_RATE < len(pcm) < LONGEST * SAMPLE_RATE:
            continue
        records.append(json.dumps(vars(Utterance(shard, offset, len(pcm), text, name, phones, words))))
        waves.append(pcm)
        offset += len(pcm)
    if not waves:
        return shard, len(lines), 0.0
    np.save(folder / f"audio-{shard:03d}.npy", np.concatenate(waves))
    with whole(index) as part:  # last: a shard with an index is whole
        part.write_text("\n".join(records) + "\n")
    return shard, len(lines) - len(waves), offset / SAMPLE_RATE


def assigned(rng: random.Random, texts: Iterable[str], voices_per_sentence: int = 2) -> list[tuple[str, str]]:
    """Who says what, shuffled: each sentence in the voices of that many different base speakers (turns of one or
    two words: one), three quarters of the lines as they are and the others shifted."""
    lines = []
    for text in texts:
        for name in rng.sample(list(BASE_SPEAKERS), voices_per_sentence if len(text.split()) > 2 else 1):
            lines.append((text, f"{name}*{rng.choice(SHIFTS):.2f}" if rng.random() < 0.25 else name))
    rng.shuffle(lines)
    return lines


def synthesise(
    folder: Path,
    phrases: int = 10_000,
    mixes: int = 16_000,
    voices_per_sentence: int = 2,
    seed: int = 1,
    workers: int = 2,
    excluded: frozenset[str] = frozenset(),
    rhvoice: Path | None = None,
    part: Part = EVERYTHING,
) -> Iterator[str]:
    """Write the training speech into `folder`, of all shards those of this `part`, skipping what is there; yields a
    line for each shard.

    `excluded` holds normalised sentences that must stay unheard, such as the evaluation's. Lines with nothing to
    say are left out and counted. Raises `InputError` when a synthesiser or a source of sentences is missing, and
    where the folder's shards say other lines.
    """
    load_engines(rhvoice)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    texts = [text for text in training_sentences(rng, phrases, mixes) if wording(text) not in excluded]
    lines = assigned(rng, texts, voices_per_sentence)
    agree(folder, "lines", digest(f"{name} {text}" for text, name in lines))
    starts = enumerate(range(0, len(lines), LINES_A_SHARD))
    jobs = [(folder, shard, lines[i : i + LINES_A_SHARD], rhvoice) for shard, i in starts if shard in part]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, (shard, lacking, seconds) in enumerate(pool.imap_unordered(_write_shard, jobs), 1):
            yield f"shard {shard}: {seconds / 60:.0f} min, {lacking} lines left out; {done} of {len(jobs)}"


def speaker_shares(said: Mapping[str, Sized]) -> np.ndarray:
    """How often to draw each speaker, float64 (speakers,), by what each has `said`: between equal speakers and equal
    clips, nearer to these. The shipped voices say three quarters of the lines, and are drawn two times of three."""
    weights = np.array([len(clips) for clips in said.values()]) ** 0.8
    return weights / weights.sum()


class Corpus:
    """Random access to the speech that `synthesise` wrote."""

    def __init__(self, folder: Path) -> None:
        self.utterances: list[Utterance] = []
        self._audio: dict[int, np.ndarray] = {}
        for index in sorted(Path(folder).glob("utterances-*.jsonl")):
            try:
                self._read(index)
            except (OSError, EOFError, ValueError, TypeError, IndexError) as error:
                raise InputError(
                    f"The training speech in {folder} is damaged at {index.name} ({error}): remove that file and run "
                    "`python -m csm train data` again."
                ) from error
        if not self.utterances:
            raise InputError(f"No training speech in {folder}: run `python -m csm train data` first.")

    def _read(self, index: Path) -> None:
        shard = int(index.stem.split("-")[1])
        clips = [Utterance(**json.loads(line)) for line in index.read_text(encoding="utf-8").splitlines()]
        self._audio[shard] = np.load(index.with_name(f"audio-{shard:03d}.npy"), mmap_mode="r")
        self.utterances += clips

    def audio(self, utterance: Utterance) -> np.ndarray:
        """int16 (num_samples,) at 24 kHz. Raises `InputError` where there is less sound than is listed."""
        pcm = self._audio[utterance.shard][utterance.offset : utterance.offset + utterance.samples]
        if len(pcm) < utterance.samples:
            raise InputError(
                f"The sound of shard {utterance.shard} is cut short: remove its utterances-*.jsonl and run `python -m "
                "csm train data` again."
            )
        return pcm
