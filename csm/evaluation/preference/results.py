"""What people chose, from the files that the page gave them: mean, interval and agreement.

A score is from -3 to 3, positive where the line with context fits better. Who fails a check doesn't count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csm.errors import InputError
from csm.evaluation.preference.page import FORMAT
from csm.evaluation.preference.pairs import BROKEN, CONTEXT, PLAIN

WORST = 3  # the ends of the scale
DRAWS = 2_000  # of the bootstrap
CLEAR = 1  # a broken side must lose by at least this much; one sound twice must be within it


@dataclass(frozen=True)
class Listener:
    """Somebody's scores by pair, with context against without, and whether every check was passed."""

    name: str
    study: str
    model: str
    scores: dict[str, int]
    attentive: bool


def read_results(paths: Sequence[Path]) -> list[Listener]:
    """The listeners in the files and folders of `paths`, one each. Raises `InputError` for what is no result of a
    study, and where the results are not of one study."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError("There are no results to read: give the JSON files that the page saved, or their folder.")
    listeners = {listener.name: listener for listener in map(_read, files)}
    studies = {listener.study for listener in listeners.values()}
    if len(studies) > 1:
        raise InputError(f"The results are of different studies ({', '.join(sorted(studies))}): read each by itself.")
    return list(listeners.values())


def preference(listeners: Sequence[Listener], seed: int = 0) -> dict[str, Any]:
    """Mean score, its 95 % interval by a bootstrap over listeners and pairs alike, and agreement as Krippendorff's
    alpha for intervals (1: all alike, 0: chance). Raises `InputError` when no attentive listener is left."""
    attentive = [listener for listener in listeners if listener.attentive and listener.scores]
    if not attentive:
        raise InputError(f"None of {len(listeners)} listeners passed the checks: there is nothing to count.")
    pairs = sorted({pair for listener in attentive for pair in listener.scores})
    table = np.array([[listener.scores.get(pair, np.nan) for pair in pairs] for listener in attentive], dtype=float)
    low, high = _interval(table, seed)
    known = table[~np.isnan(table)]
    return {
        "model": attentive[0].model,
        "study": attentive[0].study,
        "listeners": len(attentive),
        "inattentive": len(listeners) - len(attentive),
        "pairs": len(pairs),
        "scores": len(known),
        "mean": round(float(known.mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "prefer_context": round(float((known > 0).mean()), 4),
        "prefer_without": round(float((known < 0).mean()), 4),
        "agreement": agreement(table),
    }


def agreement(table: np.ndarray) -> float | None:
    """Krippendorff's alpha (2011) for interval data of (listeners, pairs), NaN where nobody scored; None where no two
    listeners scored the same pair, or all scores are one."""
    units = [column[~np.isnan(column)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return None
    values = np.concatenate(units)
    observed = sum(_distances(unit) / (len(unit) - 1) for unit in units) / len(values)
    expected = _distances(values) / (len(values) * (len(values) - 1))
    return round(float(1 - observed / expected), 4) if expected else None


def _distances(values: np.ndarray) -> float:
    """Squared differences of all ordered pairs, added up."""
    return float(((values[:, None] - values[None]) ** 2).sum())


def _interval(table: np.ndarray, seed: int) -> tuple[float, float]:
    draw = np.random.default_rng(seed)
    raters, pairs = table.shape
    means = []
    for _ in range(DRAWS):
        sample = table[draw.integers(raters, size=raters)][:, draw.integers(pairs, size=pairs)]
        if not np.isnan(sample).all():
            means.append(np.nanmean(sample))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _read(file: Path) -> Listener:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(found["format"])
        scores: dict[str, int] = {}
        attentive = True
        for answer in found["answers"]:
            score, sides = answer["score"], (answer["left"], answer["right"])
            if not isinstance(score, int) or abs(score) > WORST:
                raise ValueError(score)
            if answer["kind"] == "pair":
                if sorted(sides) != sorted((CONTEXT, PLAIN)):
                    raise ValueError(sides)
                scores[str(answer["name"])] = score if sides[1] == CONTEXT else -score
            elif answer["kind"] == "check":
                attentive &= (score if sides[0] == BROKEN else -score) >= CLEAR
            else:
                attentive &= abs(score) <= CLEAR
        return Listener(str(found["rater"]), str(found["study"]), str(found["model"]), scores, attentive)
    except OSError as error:
        raise InputError(f"The results {file} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} holds no results of such a study: give files that the page saved.") from error
