"""`csm evaluate --mixed`: whether what people write is what is said. Lines with amounts, dates, units and initialisms
are spoken as they are written and as a person has spelt them out, and both are heard against the spelt words.

A line that the model reads in the
same words either way is spoken once, because it is the same sound. The lines lie in
`csm/assets/evaluation/mixed.txt`: as written, a bar, in words.
"""

from __future__ import annotations

from typing import Any

from csm.assets import ASSETS
from csm.evaluation.desk import Desk
from csm.evaluation.keeping import Record
from csm.evaluation.metrics import error_rate
from csm.evaluation.talks import rounded
from csm.spoken import spoken

LIST = ASSETS / "evaluation" / "mixed.txt"
WAYS = ("written", "spelt")


def mixed_lines() -> list[tuple[str, str]]:
    """Every line as it is written, and in words."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [(written.strip(), spelt.strip()) for written, _, spelt in (line.partition("|") for line in lines)]


def mixed(desk: Desk, lines: list[tuple[str, str]]) -> dict[str, Any]:
    """Speak each line both ways, with one voice and one seed -> the share of words heard wrong of either way, their
    difference in points, and the lines that were read in other words than a person's."""
    names, read = list(desk.voices), desk.generator.tokenizer.words
    otherwise = [line for line in lines if read(line[0]) != read(line[1])]
    heard: dict[str, list[str | None]] = {way: [] for way in WAYS}
    for number, line in enumerate(lines):
        name = names[number % len(names)]
        for way, text in zip(WAYS, line):
            told = way if line in otherwise else WAYS[0]
            record = desk.once(f"mixed-{number:02}-{told}", "mixed lines", _said, number, text, name, told)
            heard[way].append(_in_words(record["heard"]))
    words = [spelt for _, spelt in lines]
    written, spelt = (error_rate(words, heard[way]) for way in WAYS)
    return rounded(
        {
            "lines": len(lines),
            "words_by": desk.judges.names["words"],
            "word_error_rate_written": written,
            "word_error_rate_spelt": spelt,
            "points_between": None if written is None or spelt is None else 100 * (written - spelt),
            "read_otherwise": [line for line, _ in otherwise],
        }
    )


def _in_words(heard: str | None) -> str | None:
    """What was heard, in words: recognisers write figures and signs, too."""
    return None if heard is None else spoken(heard)


def _said(desk: Desk, number: int, text: str, name: str, way: str) -> Record:
    talk = desk.generator.conversation([desk.prompt(name)], seed=desk.speech.seed + number)
    return desk.speak(talk, text, 0, f"mixed-{number:02}-{way}")[0] | {"voice": name}
