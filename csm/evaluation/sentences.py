"""Single sentences as cold starts in each voice, part of a long evaluation: words, voice, naturalness, speed.

`evaluate.py` judges the same sentences at once and beside recordings; here each is kept, so that a run can go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from csm.evaluation.desk import Desk, slipped_first
from csm.evaluation.keeping import Record
from csm.evaluation.metrics import error_rate, mean
from csm.evaluation.talks import rounded


def sentences(desk: Desk, texts: Sequence[str]) -> dict[str, Any]:
    """Speak `texts`, voice after voice, and count words heard wrong, likeness, naturalness and the real-time factor."""
    names = list(desk.voices)
    records = []
    for number, text in enumerate(texts):
        name = names[number % len(names)]
        key = f"sentence-{number + 1:02}-{name}"
        record = desk.once(key, "sentences", _sentence, number, text, name, key)
        records.append(record)
    return rounded(
        figures(desk, records)
        | {
            "voices": {
                name: figures(desk, own)
                for name in names
                if (own := [record for record in records if record["voice"] == name])
            }
        }
    )


def figures(desk: Desk, records: Sequence[Record]) -> dict[str, Any]:
    """What is counted of some of the sentences."""
    audio = sum(record["audio_seconds"] for record in records)
    known = [record for record in records if record["own"] is not None and None not in record["others"]]
    return {
        "clips": len(records),
        "word_error_rate": error_rate([r["text"] for r in records], [r["heard"] for r in records]),
        "ended": mean([record["state"] == "ended" for record in records]) if desk.ends else None,
        "slipped_first_word": mean([slipped_first(record) for record in records]),
        "similarity_own": mean([record["own"] for record in records]),
        "similarity_others": mean([other for record in records for other in record["others"]]),
        "nearest_is_own": mean([r["own"] > max(r["others"], default=-1.0) for r in known]),
        "naturalness": mean([record["naturalness"] for record in records]),
        "first_seconds": mean([record["first_seconds"] for record in records]),
        "real_time_factor": sum(record["seconds"] for record in records) / audio if audio else None,
    }


def _sentence(desk: Desk, number: int, text: str, name: str, key: str) -> Record:
    talk = desk.generator.conversation([desk.prompt(name)], seed=desk.speech.seed + number)
    record, audio = desk.speak(talk, text, 0, key)
    others = [other for other in desk.voices if other != name]
    return record | {"voice": name, **desk.likeness(audio, name, others)}
