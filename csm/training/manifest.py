"""One's own recordings for training: a folder of sound files and a manifest that says who says what in them.

The manifest is `manifest.csv` (UTF-8, separated by commas, first line the names of the columns) or `manifest.jsonl`
(one object a line), with

    file          the recording, relative to the folder: anything that `csm.audio` reads, of any kind and rate
    text          exactly the words that are said
    speaker       who says them, any name
    conversation  optional: rows with the same one are turns of one talk and stay together
    order         optional: their order, a number; without it they come as the manifest lists them

Every row is checked before anything is trained (`check_manifest`); then the recordings become codes once, on their way
into `csm/training/finetune.py`.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from csm.audio import inspect_audio, load_audio
from csm.config import FRAME_RATE, SAMPLE_RATE
from csm.conversation.parsing import MAX_SPEAKERS
from csm.errors import InputError
from csm.speech.voices import SILENCE, WINDOW
from csm.text import Tokenizer, turn_text

NAMES = ("manifest.csv", "manifest.jsonl")
NEEDED = ("file", "text", "speaker")
OPTIONAL = ("conversation", "order")
HELP = (
    "a folder with recordings and manifest.csv (columns file,text,speaker and, to keep conversations together, "
    "conversation,order) or manifest.jsonl (the same keys)"
)
SHORTEST = 0.2  # seconds of sound
LOWEST_RATE = 6_000  # Hz: below, there are no consonants
NAMED = 3  # so many rows of each reason are named in a report
# Letters, digits, money and arithmetic are said aloud, so a model that can't read them would learn a wrong text.
SAID_ALOUD = ("L", "N", "Sc", "Sm")


@dataclass(frozen=True)
class ManifestOptions:
    """What to take from a manifest: only these `speakers` (all of them when empty), recordings up to `longest`
    seconds, and whether a row that can't be used is skipped or refuses the whole."""

    speakers: tuple[str, ...] = ()
    longest: float = 30.0
    on_bad: Literal["refuse", "skip"] = "refuse"


@dataclass(frozen=True)
class Recording:
    """A row that passed every check: `seconds` long, at `path`, listed in `line` as `name`."""

    path: Path
    name: str
    line: int
    text: str
    speaker: str
    conversation: str = ""
    order: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Bad:
    """A row that can't be used, and why in a word or two."""

    line: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} (line {self.line})" if self.name else f"line {self.line}"


@dataclass
class Manifest:
    """What a manifest offers: usable recordings in its order, the bad rows, and what else was noticed."""

    name: str
    recordings: list[Recording] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    mixed_down: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of sound in all."""
        return sum(recording.seconds for recording in self.recordings)

    def reasons(self) -> str:
        """How many rows can't be used for which reason, the most frequent first: "2 missing, 1 silent"."""
        counted = Counter(bad.reason for bad in self.bad).most_common()
        return ", ".join(f"{count} {reason}" for reason, count in counted)

    def lines(self) -> list[str]:
        """The report: what is used, what was changed to use it, and the first rows of each reason not to."""
        speakers = len({recording.speaker for recording in self.recordings})
        lines = [
            f"{self.name}: {_counted(len(self.recordings), 'recording')}, {self.seconds / 60:.1f} minutes, "
            f"{_counted(speakers, 'speaker')}"
        ]
        if self.rates:
            each = ", ".join(f"{count} from {rate} Hz" for rate, count in self.rates.most_common())
            lines.append(f"resampled to {SAMPLE_RATE} Hz: {each}")
        if self.mixed_down:
            lines.append(f"mixed down to one channel: {self.mixed_down}")
        lines += self.notes
        for reason, count in Counter(bad.reason for bad in self.bad).most_common():
            first = [str(bad) for bad in self.bad if bad.reason == reason][:NAMED]
            more = f" and {count - NAMED} more" if count > NAMED else ""
            lines.append(f"skipped, {reason}: {', '.join(first)}{more}")
        return lines


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def has_manifest(folder: Path) -> bool:
    """Whether a folder holds a manifest: if so, it is somebody's own recordings."""
    return any((Path(folder) / name).is_file() for name in NAMES)


def check_manifest(
    folder: Path, tokenizer: Tokenizer, max_positions: int, options: ManifestOptions = ManifestOptions()
) -> Manifest:
    """Read a folder's manifest and check every row and recording, the quick checks of all rows first.

    `max_positions` is the longest turn, text and frames, that can be trained on. Raises `InputError` in one sentence
    for a manifest that can't be used at all, and, unless `options` say to skip them, for rows that can't.
    """
    file = _find(Path(folder))
    manifest = Manifest(file.name)
    recordings = list(_rows(file, manifest, options))
    recordings = _of_wanted_speakers(recordings, manifest, options)
    recordings = [done for row in recordings if (done := _checked(row, manifest, tokenizer, max_positions, options))]
    recordings = _with_room_for_speakers(recordings, manifest)
    _refuse(manifest, options)
    for recording in recordings:
        seconds, reason = _heard(recording)
        reason = reason or _length_problem(recording.text, seconds, tokenizer, max_positions, options.longest)
        if reason:
            manifest.bad.append(Bad(recording.line, recording.name, reason))
            continue
        manifest.recordings.append(replace(recording, seconds=seconds))
        info = inspect_audio(recording.path)
        manifest.rates[info.sample_rate] += info.sample_rate != SAMPLE_RATE
        manifest.mixed_down += info.channels > 1
    manifest.rates = +manifest.rates
    manifest.bad.sort(key=lambda bad: bad.line)
    _refuse(manifest, options)
    if not manifest.recordings:
        why = f" ({manifest.reasons()})" if manifest.bad else ""
        raise InputError(f"{manifest.name} lists no recording that can be used{why}: add rows or correct these.")
    return manifest


def _find(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give one with recordings and {' or '.join(NAMES)}.")
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"The folder {folder.name} has both {' and '.join(NAMES)}: keep one of them.")
    if not found:
        raise InputError(
            f"The folder {folder.name} has no {' or '.join(NAMES)}: list its recordings there, one a row, with the "
            f"columns {', '.join(NEEDED)}."
        )
    return found[0]


def _refuse(manifest: Manifest, options: ManifestOptions) -> None:
    if not manifest.bad or options.on_bad == "skip":
        return
    first = min(manifest.bad, key=lambda bad: bad.line)
    others = len(manifest.bad) - 1
    more = f", and {others} more can't ({manifest.reasons()} in all)" if others else ""
    raise InputError(
        f"{manifest.name} lists {first}, which can't be used: {first.reason}{more}; correct the manifest, or leave "
        "such rows out with --on-bad skip."
    )


def _rows(file: Path, manifest: Manifest, options: ManifestOptions) -> Iterator[Recording]:
    """The rows as recordings, seen from the manifest alone; unreadable ones go to `manifest.bad`."""
    seen: set[Path] = set()
    for line, values in _csv(file, options, manifest) if file.suffix == ".csv" else _jsonl(file, options, manifest):
        name, text, speaker = (_text(values.get(key)) for key in NEEDED)
        order = _text(values.get("order"))
        path = Path(os.path.normpath(file.parent / name))
        if None in values or not _plain(values):
            reason = "not a row of these columns"
        elif not name:
            reason = "no file named"
        elif not path.is_relative_to(os.path.normpath(file.parent)):
            reason = "outside the folder"
        elif path in seen:
            reason = "listed twice"
        elif not any(map(str.isalnum, text)):
            reason = "no text"
        elif not speaker:
            reason = "no speaker"
        elif order and not _is_number(order):
            reason = "an order that is no number"
        else:
            seen.add(path)
            yield Recording(path, name, line, text, speaker, _text(values.get("conversation")), float(order or 0))
            continue
        manifest.bad.append(Bad(line, name, reason))


def _csv(file: Path, options: ManifestOptions, manifest: Manifest) -> Iterator[tuple[int, dict[Any, Any]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True, restval=None)
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            _check_columns(names, file, options, manifest)
            reader.fieldnames = names
            for row in reader:
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file.name} can't be read ({error}): save it as UTF-8 text separated by commas.") from error


def _jsonl(file: Path, options: ManifestOptions, manifest: Manifest) -> Iterator[tuple[int, dict[Any, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file.name} can't be read ({error}): save it as UTF-8 text, one object a line.") from error
    parsed: list[tuple[int, dict[Any, Any]]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            parsed.append((number, values if isinstance(values, dict) else {None: line}))
    names = list(dict.fromkeys(key for _, values in parsed for key in values if key is not None))
    if parsed:
        _check_columns(names or list(NEEDED), file, options, manifest)
    yield from parsed


def _check_columns(names: list[str], file: Path, options: ManifestOptions, manifest: Manifest) -> None:
    if missing := [name for name in NEEDED if name not in names]:
        raise InputError(
            f"{file.name} has no {missing[0]!r} among its columns ({', '.join(names)[:80] or 'none'}); it needs "
            f"{', '.join(NEEDED)}."
        )
    if unknown := [name for name in names if name not in NEEDED + OPTIONAL]:
        if options.on_bad == "refuse":
            raise InputError(
                f"{file.name} has the column {unknown[0]!r}, which means nothing here: remove it (known are "
                f"{', '.join(NEEDED + OPTIONAL)}), or pass over such columns with --on-bad skip."
            )
        manifest.notes.append(f"columns passed over: {', '.join(unknown)}")


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _plain(values: dict[Any, Any]) -> bool:
    """Whether all that a row says is text or numbers."""
    given = [values.get(key) for key in NEEDED + OPTIONAL]
    return all(
        value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)) for value in given
    )


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def _of_wanted_speakers(recordings: list[Recording], manifest: Manifest, options: ManifestOptions) -> list[Recording]:
    if not options.speakers:
        return recordings
    there = list(dict.fromkeys(recording.speaker for recording in recordings))
    unknown = [name for name in options.speakers if name not in there]
    if unknown and (options.on_bad == "refuse" or len(unknown) == len(options.speakers)):
        listed = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        raise InputError(f"{manifest.name} has no speaker {unknown[0]!r}: choose among {listed or 'none'}.")
    if unknown:
        manifest.notes.append(f"speakers that aren't there: {', '.join(unknown)}")
    chosen = [recording for recording in recordings if recording.speaker in options.speakers]
    if others := len(recordings) - len(chosen):
        manifest.notes.append(f"of other speakers, left out: {others}")
    return chosen


def _checked(
    row: Recording, manifest: Manifest, tokenizer: Tokenizer, max_positions: int, options: ManifestOptions
) -> Recording | None:
    """The row with its length, from the file's header; None, and a bad row more, where it can't be used."""
    seconds = 0.0
    if not os.path.isfile(row.path):  # False, not an error, for a name that no file can have
        reason = "no such file"
    elif mute := unspeakable(tokenizer, row.text):
        reason = f"characters that the model can't speak, such as {mute[0]}"
    else:
        try:
            info = inspect_audio(row.path)
            seconds = info.seconds
            reason = _length_problem(row.text, seconds, tokenizer, max_positions, options.longest)
            if info.sample_rate < LOWEST_RATE:
                reason = f"a rate below {LOWEST_RATE} Hz"
        except InputError:
            reason = "not audio that can be read"
    if reason:
        manifest.bad.append(Bad(row.line, row.name, reason))
        return None
    return replace(row, seconds=seconds)


def unspeakable(tokenizer: Tokenizer, text: str) -> list[str]:
    """The characters of `text` that are said aloud and that the tokenizer passes over."""
    nothing = len(tokenizer.encode(""))

    def mute(character: str) -> bool:
        try:
            return len(tokenizer.encode(character)) <= nothing
        except InputError:
            return True

    return [
        character
        for character in dict.fromkeys(text)
        if unicodedata.category(character).startswith(SAID_ALOUD) and mute(character)
    ]


def _length_problem(text: str, seconds: float, tokenizer: Tokenizer, max_positions: int, longest: float) -> str:
    if seconds == 0:
        return "no sound"
    if seconds < SHORTEST:
        return f"shorter than {SHORTEST:g} s"
    if seconds > longest:
        return f"longer than {longest:g} s"
    positions = len(tokenizer.encode(turn_text(text, MAX_SPEAKERS - 1))) + int(seconds * FRAME_RATE) + 2
    return f"longer than {max_positions} positions" if positions > max_positions else ""


def _with_room_for_speakers(recordings: list[Recording], manifest: Manifest) -> list[Recording]:
    """Without the turns of a conversation's ninth speaker and further ones: there is no slot for them."""
    slots: dict[str, set[str]] = {}
    kept = []
    for recording in recordings:
        there = slots.setdefault(recording.conversation, set()) if recording.conversation else set()
        if recording.speaker not in there and len(there) == MAX_SPEAKERS:
            reason = f"more than {MAX_SPEAKERS} speakers in its conversation"
            manifest.bad.append(Bad(recording.line, recording.name, reason))
            continue
        there.add(recording.speaker)
        kept.append(recording)
    return kept


def _heard(recording: Recording) -> tuple[float, str]:
    """Seconds of the recording, and what is wrong with its sound if anything is, found by decoding all of it."""
    try:
        wave = load_audio(recording.path)
    except InputError:
        return 0.0, "not audio that can be read"
    seconds = len(wave) / SAMPLE_RATE
    if seconds < 0.9 * recording.seconds:
        return seconds, "cut short: it ends before its header says"
    windows = torch.nn.functional.pad(wave, (0, -len(wave) % WINDOW)).view(-1, WINDOW)
    return seconds, "silent" if float(windows.square().mean(dim=1).sqrt().max()) < SILENCE else ""
