"""Context, shown: conversations of twenty turns, in which each speaker should stay the same person, every turn should
begin and end well, and none should take longer to begin because much was said before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from csm.evaluation.desk import Desk, lost_last, slipped_first
from csm.evaluation.keeping import Record
from csm.evaluation.metrics import error_rate, mean
from csm.evaluation.published.dialogue import cp_similarity, cp_word_error_rate
from csm.training.held_out import LONG_CONVERSATION

TURNS = len(LONG_CONVERSATION)


def pairs(names: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Who talks with whom: every voice with the next, then with the one after that, and so on."""
    size = len(names)
    return [
        (names[number % size], names[(number + 1 + number // size % (size - 1)) % size])
        if size > 1
        else (names[0],) * 2
        for number in range(count)
    ]


def talks(desk: Desk, count: int, turns: int = TURNS) -> dict[str, Any]:
    """Speak `count` conversations of `turns` turns, two voices each, and count what `figures` counts."""
    records = []
    for number, names in enumerate(pairs(list(desk.voices), count)):
        records.append(desk.once(f"talk-{number:02}", "conversations", _talk, number, names, turns))
    return figures(desk, records)


def _talk(desk: Desk, number: int, names: tuple[str, str], turns: int) -> Record:
    prompts = [desk.prompt(name, slot) for slot, name in enumerate(names)]
    talk = desk.generator.conversation(prompts, seed=desk.speech.seed + number)
    spoken = []
    for place, (who, text) in enumerate(LONG_CONVERSATION[:turns]):
        record, audio = desk.speak(talk, text, who, f"talk-{number:02}-{place + 1:02}-{names[who]}")
        record |= {"voice": names[who], **desk.likeness(audio, names[who], [names[1 - who]])}
        spoken.append(record)
    return {"voices": list(names), "turns": spoken}


def figures(desk: Desk, records: Sequence[Record]) -> dict[str, Any]:
    """Likeness to the own prompt by turn and its drift (change over ten turns, by least squares), seconds to the first
    sound by turn, how often the first word of a first turn and of a later one slipped, how turns ended, and the figures
    of dialogues, cpWER and cpSIM."""
    turns = [turn for record in records for turn in record["turns"]]
    longest = max((len(record["turns"]) for record in records), default=0)
    places = [[record["turns"][at] for record in records if at < len(record["turns"])] for at in range(longest)]
    first, later = places[0] if places else [], [turn for place in places[1:] for turn in place]
    by_turn = {
        "own": [mean([turn["own"] for turn in place]) for place in places],
        "others": [mean([other for turn in place for other in turn["others"]]) for place in places],
        "first_seconds": [mean([turn["first_seconds"] for turn in place]) for place in places],
        "slipped": [mean([slipped_first(turn) for turn in place]) for place in places],
    }
    return rounded(
        {
            "conversations": len(records),
            "turns": len(turns),
            "nearest_is_own": mean(
                [
                    None if None in (turn["own"], *turn["others"]) else turn["own"] > max(turn["others"])
                    for turn in turns
                ]
            ),
            "similarity_own": mean([turn["own"] for turn in turns]),
            "similarity_others": mean([other for turn in turns for other in turn["others"]]),
            "drift_in_ten_turns": drift(by_turn["own"]),
            "first_seconds": mean(by_turn["first_seconds"]),
            "first_seconds_last_turn": by_turn["first_seconds"][-1] if places else None,
            "word_error_rate": _errors(turns),
            "word_error_rate_first_turns": _errors(first),
            "word_error_rate_later_turns": _errors(later),
            "slipped_first_turns": mean([slipped_first(turn) for turn in first]),
            "slipped_later_turns": mean([slipped_first(turn) for turn in later]),
            "ended": mean([turn["state"] == "ended" for turn in turns]) if desk.ends else None,
            "last_word_lost": mean([lost_last(turn) for turn in turns]),
            "silence_at_the_end_seconds": mean([turn["silence_seconds"] for turn in turns]),
            "cp_word_error_rate": mean([cp_word_error_rate(*_sides(record)) for record in records]),
            "cp_similarity": mean([cp_similarity(_likenesses(record)) for record in records]),
            "by_turn": by_turn,
        }
    )


def drift(values: Sequence[float | None]) -> float | None:
    """How much a figure changes over ten turns, by least squares; None for fewer than two turns that have it."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    places, figures_there = np.array(known).T
    return float(10 * np.polyfit(places, figures_there, 1)[0])


def rounded(value: Any) -> Any:
    """Figures with four digits behind the point."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(own) for own in value]
    return round(value, 4) if isinstance(value, float) else value


def _errors(turns: Sequence[Record]) -> float | None:
    return error_rate([turn["text"] for turn in turns], [turn["heard"] for turn in turns])


def _sides(record: Record) -> tuple[list[str], list[str | None]]:
    """What each of the two had to say, and what was heard in the voice that is nearest to each, all turns joined.

    Whose voice a turn has is judged; where nobody judges it is who was asked to speak. When turns begin and end is
    known and not judged."""
    written = [" ".join(turn["text"] for turn in record["turns"] if turn["voice"] == name) for name in record["voices"]]
    heard: list[str | None] = []
    for name in record["voices"]:
        own = [turn for turn in record["turns"] if _sounds_like(turn, record["voices"]) == name]
        silent = any(turn["heard"] is None for turn in record["turns"])
        heard.append(None if silent else " ".join(turn["heard"] for turn in own))
    return written, heard


def _sounds_like(turn: Record, voices: Sequence[str]) -> str:
    other = next(name for name in voices if name != turn["voice"]) if len(set(voices)) > 1 else turn["voice"]
    if turn["own"] is None or None in turn["others"] or turn["own"] >= max(turn["others"]):
        return turn["voice"]
    return other


def _likenesses(record: Record) -> list[list[float | None]]:
    """Mean likeness of the turns in the voice of each (rows) to the prompt of each (columns)."""
    rows: list[list[float | None]] = []
    for name in record["voices"]:
        own = [turn for turn in record["turns"] if _sounds_like(turn, record["voices"]) == name]
        rows.append(
            [
                mean([turn["own"] if turn["voice"] == prompt else turn["others"][0] for turn in own])
                for prompt in record["voices"]
            ]
        )
    return rows
