"""`csm evaluate --all`: every measure one after the other, kept as it goes, and one report of them all.

What can't be measured here (no recogniser, no judge of pronunciations, a model that never ends its turns) is said
before the first clip is made, and stands in the report; the rest is measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from csm.engine.frames import Segment
from csm.errors import InputError
from csm.evaluation.context import Speech
from csm.evaluation.desk import Desk, ends_turns, never_ends
from csm.evaluation.judges import Judges, Report
from csm.evaluation.keeping import Record, Store
from csm.evaluation.progress import Progress
from csm.evaluation.pronunciation.aligner import Aligner
from csm.evaluation.pronunciation.lists import continuations, homographs
from csm.evaluation.pronunciation.measures import continuation, judge_accuracy
from csm.evaluation.pronunciation.measures import homographs as measure_homographs
from csm.evaluation.pronunciation.tellers import teller
from csm.evaluation.report import page
from csm.evaluation.report.page import Player
from csm.evaluation.sentences import sentences
from csm.evaluation.talks import TURNS, talks
from csm.speech.generator import Generator
from csm.speech.voices import Voice, load_prompt
from csm.training.held_out import SENTENCES

Figures = dict[str, Any]
T = TypeVar("T")

JUDGED_SENTENCES = 42  # of the homographs', each told both ways: once for every word and way
PLAYERS = {"sentence": 6, "talk": 8, "homograph": 8, "again": 6}  # in the report, by the beginning of their keys
FINGERPRINT_MS = 400


@dataclass(frozen=True)
class Sizes:
    """How much of each is spoken; 0 leaves a measure out."""

    sentences: int = 30
    talks: int = 6
    turns: int = TURNS
    homographs: int = len(homographs())
    continuations: int = len(continuations())


def full(
    generator: Generator,
    voices: dict[str, Voice],
    judges: Judges,
    speech: Speech,
    sizes: Sizes,
    folder: Path | None = None,
    known: Path | None = None,
    report: Report = print,
) -> tuple[Figures, Store]:
    """Measure everything that can be measured here -> the figures, and what is kept of the clips.

    `known` is the folder of Kokoro, whose pronunciation is known; without it eSpeak NG tells the contexts and the
    judge's test. Raises `InputError` when there is no voice, or the folder can't be used.
    """
    if not voices:
        raise InputError("There is nothing to evaluate: give at least one voice.")
    left_out: list[str] = []
    if judges.recogniser is None:
        left_out.append("Words, slips and cpWER: no recogniser is installed.")
    if judges.similarity is None:
        left_out.append("Likeness, drift and cpSIM: Resemblyzer is not installed.")
    wanted = sizes.homographs or sizes.continuations
    aligner = _if_there(Aligner, "Pronunciation", left_out) if wanted else None
    telling = _if_there(lambda: teller(known), "The judge's accuracy and continuation", left_out) if aligner else None
    voice = next(iter(voices.values()))
    store = Store(folder, settings_of(generator, voice, judges, speech) | {"known": telling.name if telling else None})
    ends = store.once("ends", lambda: {"ends": ends_turns(generator, voice, speech)})["ends"]
    if not ends:
        left_out.append(never_ends(speech))
    for why in left_out:
        report(f"Not measured: {why}")
    chosen, pairs = homographs(sizes.homographs), continuations(sizes.continuations)
    tested = chosen[:JUDGED_SENTENCES] if telling else []
    total = min(sizes.sentences, len(SENTENCES)) + sizes.talks + 2 * len(tested)
    total += len(chosen) if aligner else 0
    total += len(pairs) + sum(pair.turn.right == 0 for pair in pairs) if telling else 0
    desk = Desk(generator, voices, judges, speech, store, Progress(total), ends)
    figures: Figures = {
        "model": generator.model_name,
        "device": str(generator.device),
        "seed": speech.seed,
        "judges": judges.names | {"pronunciation": aligner.name if aligner else None},
        "sizes": asdict(sizes),
        "left_out": left_out,
    }
    if sizes.sentences:
        figures["sentences"] = sentences(desk, SENTENCES[: sizes.sentences])
    if sizes.talks:
        figures["talks"] = talks(desk, sizes.talks, sizes.turns)
    if aligner and chosen:
        accuracy = None
        if telling:
            figures["judge"] = judge_accuracy(desk, aligner, telling, tested)
            accuracy = figures["judge"]["after_codec"]["right"]
        figures["homographs"] = measure_homographs(desk, aligner, chosen, accuracy)
    if aligner and telling and pairs:
        figures["continuation"] = continuation(desk, aligner, telling, pairs)
    return figures, store


def players(store: Store) -> dict[str, list[Player]]:
    """Some of the clips, to be heard in the report, by the section that they belong to."""
    sections = {"sentence": "sentences", "talk": "talks", "homograph": "homographs", "again": "continuation"}
    made: dict[str, list[Player]] = {}
    for start, most in PLAYERS.items():
        clips: list[Record] = []
        for key, record in store.records.items():
            if key.startswith(f"{start}-"):
                clips += record.get("turns", [record])
        found = [
            Player(clip["text"], clip["heard"], clip["file"], clip.get("voice", "")) for clip in clips if clip["file"]
        ]
        made[sections[start]] = found[:most]
    return made


def lines(figures: Figures) -> list[str]:
    """The figures for people at a terminal."""
    made = []
    for key, rows, title in (
        ("sentences", page.SENTENCES, "Single sentences"),
        ("talks", page.TALKS, "Long conversations"),
        ("homographs", page.HOMOGRAPHS, "Homographs"),
        ("continuation", page.CONTINUATION, "Pronunciation, continued"),
    ):
        if key in figures:
            made += ["", title]
            made += [f"  {row.label:<48}{page.told(figures[key].get(row.key), row.kind):>16}" for row in rows]
    if "judge" in figures:
        judge = figures["judge"]
        plain, after = (page.told(judge[key]["right"], page.PERCENT) for key in ("as_it_is", "after_codec"))
        made += [
            "",
            f"The judge of pronunciations is right on {judge['speech']} in {plain}, after the codec in {after}.",
        ]
    return made


def settings_of(generator: Generator, voice: Voice, judges: Judges, speech: Speech) -> Figures:
    """What the kept clips depend on. The model is known by what it says: its folder may hold another tomorrow."""
    codes = generator.generate_codes(
        "Hello.",
        0,
        [Segment(0, voice.transcript, load_prompt(voice))],
        max_audio_length_ms=FINGERPRINT_MS,
        topk=1,
        seed=0,
    )
    return {
        "model": generator.model_name,
        "says": hashlib.sha256(codes.cpu().numpy().tobytes()).hexdigest()[:16],
        "device": generator.device.type,
        "speech": {"seed": speech.seed, **speech.options()},
        "judges": judges.names,
    }


def _if_there(make: Callable[[], T], what: str, left_out: list[str]) -> T | None:
    try:
        return make()
    except InputError as error:
        left_out.append(f"{what}: {error}")
        return None
