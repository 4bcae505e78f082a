"""A model on a published list: every text in its prompt's voice, the sound kept under its name, and a manifest of JSON
lines that the Open TTS Leaderboard's scripts read, so that others' judges can judge the same sound.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csm.errors import InputError
from csm.evaluation.desk import Desk
from csm.evaluation.keeping import Record
from csm.evaluation.metrics import mean
from csm.evaluation.published.lists import Item
from csm.evaluation.published.normaliser import normaliser, rates
from csm.evaluation.talks import rounded
from csm.files import output
from csm.speech.voices import Voice, load_prompt


def voices_of(items: Sequence[Item]) -> dict[str, Voice]:
    """The prompts of a list as voices, by the name of their item; each is read once, so that one that is no speech is
    said before anything is spoken. Raises `InputError`."""
    voices = {}
    checked: set[Path] = set()
    for item in items:
        voices[item.name] = Voice(item.name, item.recording, item.transcript)
        if item.recording not in checked:
            try:
                load_prompt(voices[item.name])
            except InputError as error:
                raise InputError(f"The recording of {item.name} can't be used. {error}") from error
            checked.add(item.recording)
    return voices


def listed(desk: Desk, items: Sequence[Item]) -> tuple[dict[str, Any], list[Record]]:
    """Speak the list -> its figures, and the lines of its manifest. `desk.voices` are those of `voices_of`."""
    records = [
        desk.once(f"list-{item.name}", "lines of the list", _spoken, item, number) for number, item in enumerate(items)
    ]
    words = normaliser()
    heard = [record["heard"] for record in records]
    whole = by_line = None
    if None not in heard:
        whole, by_line = rates([item.text for item in items], heard, words.words)
    audio = sum(record["audio_seconds"] for record in records)
    figures = {
        "lines": len(records),
        "words_by": desk.judges.names["words"],
        "similarity_by": desk.judges.names["voices"],
        "normaliser": words.name,
        "word_error_rate": whole,
        "word_error_rate_mean_of_lines": by_line,
        "similarity": mean([record["own"] for record in records]),
        "naturalness": mean([record["naturalness"] for record in records]),
        "ended": mean([record["state"] == "ended" for record in records]) if desk.ends else None,
        "times_real_time": audio / sum(record["seconds"] for record in records) if audio else None,
        "first_seconds": mean([record["first_seconds"] for record in records]),
    }
    return rounded(figures), [_line(desk, item, record) for item, record in zip(items, records)]


def write_manifest(folder: Path, model: str, dataset: str, lines: Sequence[Record]) -> Path:
    """Write the manifest under the name that the leaderboard's scripts take apart. Raises `InputError`."""
    plain = model.strip("/").replace("/", "-")
    target = folder / f"MODEL_{plain}_DATASET_{dataset}.jsonl"
    with output(target) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return target


def _spoken(desk: Desk, item: Item, number: int) -> Record:
    talk = desk.generator.conversation([desk.prompt(item.name)], seed=desk.speech.seed + number)
    record, audio = desk.speak(talk, item.text, 0, item.name)
    return record | desk.likeness(audio, item.name, [])


def _line(desk: Desk, item: Item, record: Record) -> Record:
    line = {
        "id": item.name,
        "audio_filepath": record["file"],
        "duration": record["audio_seconds"],
        "time": record["seconds"],
        "text": item.text,
        "pred_text": record["heard"] or "",
        "prompt_text": item.transcript,
        "prompt_audio_filepath": str(item.recording),
    }
    if record["own"] is not None:
        line |= {"sim": record["own"], "sim_model": desk.judges.names["voices"]}
    return line
