"""The figures of a long evaluation as a page: what was measured, how, by whom, with plots and players in one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from csm.evaluation.pronunciation.lists import FOLDER
from csm.evaluation.report.plots import bars, lines
from csm.files import output
from csm.version import __version__

Figures = dict[str, Any]

PERCENT, NUMBER, SECONDS = "percent", "number", "seconds"


@dataclass(frozen=True)
class Row:
    """A figure in a table: its key, what it is called, and what kind of number it is."""

    key: str
    label: str
    kind: str = PERCENT


@dataclass(frozen=True)
class Player:
    """A sound to hear: what was written, what was heard, and the file in the evaluation's folder."""

    text: str
    heard: str | None
    file: str
    note: str = ""


SENTENCES = (
    Row("clips", "sentences", NUMBER),
    Row("word_error_rate", "words heard wrong"),
    Row("ended", "turns that ended by themselves"),
    Row("slipped_first_word", "first words heard wrong"),
    Row("nearest_is_own", "clips nearest to their own prompt"),
    Row("similarity_own", "likeness to the own prompt", NUMBER),
    Row("similarity_others", "likeness to the others' prompts", NUMBER),
    Row("naturalness", "naturalness, 1 to 5", NUMBER),
    Row("first_seconds", "first sound after", SECONDS),
    Row("real_time_factor", "seconds of work for a second of sound", NUMBER),
)
TALKS = (
    Row("conversations", "conversations", NUMBER),
    Row("turns", "turns", NUMBER),
    Row("nearest_is_own", "turns nearest to their own prompt"),
    Row("similarity_own", "likeness to the own prompt", NUMBER),
    Row("similarity_others", "likeness to the other's prompt", NUMBER),
    Row("drift_in_ten_turns", "change of likeness in ten turns", NUMBER),
    Row("word_error_rate_first_turns", "words heard wrong, first turns"),
    Row("word_error_rate_later_turns", "words heard wrong, later turns"),
    Row("slipped_first_turns", "first word heard wrong, first turns"),
    Row("slipped_later_turns", "first word heard wrong, later turns"),
    Row("ended", "turns that ended by themselves"),
    Row("last_word_lost", "last word heard wrong or not at all"),
    Row("silence_at_the_end_seconds", "silence at the end", SECONDS),
    Row("first_seconds", "first sound after", SECONDS),
    Row("first_seconds_last_turn", "first sound of the last turn after", SECONDS),
    Row("cp_word_error_rate", "cpWER"),
    Row("cp_similarity", "cpSIM", NUMBER),
)
HOMOGRAPHS = (
    Row("sentences", "sentences", NUMBER),
    Row("judged", "of which could be judged", NUMBER),
    Row("right", "heard as the sentence asks"),
    Row("interval", "95 % interval"),
    Row("right_by_a_judge_without_error", "estimate for a judge without error"),
    Row("said_the_first_way", "heard the first way (half would be right)"),
)
CONTINUATION = (
    Row("turns", "turns", NUMBER),
    Row("judged", "of which could be judged", NUMBER),
    Row("right", "heard as the context said it (chance: 50 %)"),
    Row("interval", "95 % interval"),
    Row("said_the_first_way_after_the_first", "heard the first way after the first way"),
    Row("said_the_first_way_after_the_second", "heard the first way after the second way"),
    Row("said_the_first_way_without_context", "heard the first way without such a context"),
)


def write_report(target: Path, figures: Figures, players: dict[str, list[Player]], folder: Path) -> None:
    """Write the page, whole or not at all. Raises `InputError`."""
    with output(target) as part:
        part.write_text(page(figures, players, folder), encoding="utf-8")


def page(figures: Figures, players: dict[str, list[Player]], folder: Path) -> str:
    """The report as HTML; sound comes from the files in `folder` and goes into the page."""
    title = f"{figures['model']}: an evaluation of conversational speech"
    sections = [_summary(figures), *_left_out(figures)]
    for key, make in (
        ("sentences", _sentences),
        ("talks", _talks),
        ("homographs", _homographs),
        ("continuation", _continuation),
    ):
        if key in figures:
            sections.append(f'<section id="{key}">{make(figures)}{_sound(players.get(key, []), folder)}</section>')
    data = json.dumps(figures, ensure_ascii=False).replace("</", "<\\/")
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + f'\n<script type="application/json" id="figures">{data}</script>\n</body></html>\n'
    )


def told(value: Any, kind: str) -> str:
    """A figure as people read it; a dash for what was not measured."""
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return f"{told(value[0], kind).removesuffix(' %')} to {told(value[1], kind)}"
    if kind == PERCENT:
        return f"{100 * value:.1f} %"
    if kind == SECONDS:
        return f"{value:.2f} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _summary(figures: Figures) -> str:
    judges = figures["judges"]
    named = ", ".join(f"{what} by {who}" for what, who in judges.items() if who) or "nobody"
    return (
        f"<p>Model <b>{escape(figures['model'])}</b> on {escape(figures['device'])}, seed {figures['seed']}, "
        f"csm {escape(__version__)}. Judged: {escape(named)}. Judges are small networks that work offline: compare "
        "these figures with others made in the same way, and not with those of other judges. All sound carries a "
        "watermark, which was put on after judging.</p>"
    )


def _left_out(figures: Figures) -> Iterable[str]:
    if figures["left_out"]:
        items = "".join(f"<li>{escape(why)}</li>" for why in figures["left_out"])
        yield f'<div class="note"><p>Not measured:</p><ul>{items}</ul></div>'


def _table(rows: Sequence[Row], figures: Figures) -> str:
    cells = "".join(
        f"<tr><td>{escape(row.label)}</td><td>{told(figures.get(row.key), row.kind)}</td></tr>" for row in rows
    )
    return f"<table>{cells}</table>"


def _sentences(figures: Figures) -> str:
    found = figures["sentences"]
    by_voice = {name: own["word_error_rate"] for name, own in found["voices"].items()}
    return (
        "<h2>Single sentences</h2><p>Everyday sentences, each a cold start after a voice's prompt.</p>"
        + _table(SENTENCES, found)
        + bars("Words heard wrong, by voice", by_voice)
    )


def _talks(figures: Figures) -> str:
    found = figures["talks"]
    by_turn = found["by_turn"]
    return (
        "<h2>Context: long conversations</h2><p>Two voices take turns; every turn hears all before it. When a turn "
        "begins and ends is known; whose voice it has is judged. cpWER and cpSIM join all that is heard in each voice "
        "and pair voices with speakers as well as can be.</p>"
        + _table(TALKS, found)
        + lines(
            "Likeness to a prompt, by turn", "turn", {"own prompt": by_turn["own"], "the other's": by_turn["others"]}
        )
        + lines("Seconds to the first sound, by turn", "turn", {"seconds": by_turn["first_seconds"]}, zero=True)
        + lines("First word heard wrong, by turn", "turn", {"share of turns": by_turn["slipped"]}, zero=True)
    )


def _homographs(figures: Figures) -> str:
    found, judge = figures["homographs"], figures.get("judge")
    return (
        "<h2>Homographs</h2><p>Words with two pronunciations in sentences that decide between them, both in equal "
        f"parts. An acoustic model must choose one. {_judge(judge)}</p>"
        + _table(HOMOGRAPHS, found)
        + bars("Heard as the sentence asks, by word", found["words"], 0.5)
        + (bars("The judge itself, right on known speech, by word", judge["words"], 0.5) if judge else "")
    )


def _judge(judge: Figures | None) -> str:
    if judge is None:
        return "How often it is right was not measured here."
    plain, after = judge["as_it_is"], judge["after_codec"]
    return (
        f"On speech of {escape(judge['speech'])} whose pronunciation is known the judge ({escape(judge['judge'])}) is "
        f"right in {told(plain['right'], PERCENT)} of {plain['judged']} clips, and in {told(after['right'], PERCENT)} "
        "after the model's codec."
    )


def _continuation(figures: Figures) -> str:
    found = figures["continuation"]
    judge = found["judge"]
    return (
        "<h2>Pronunciation, continued</h2><p>A context says a word that may be said in two ways in one of them; the "
        f"next turn says it again. The contexts are told by {escape(judge['speech'])} in known ways; on "
        f"them the judge is right in {told(judge['right'], PERCENT)} of {judge['judged']}.</p>"
        + _table(CONTINUATION, found)
    )


def _sound(players: Sequence[Player], folder: Path) -> str:
    items = []
    for player in players:
        try:
            data = base64.b64encode((folder / player.file).read_bytes()).decode()
        except OSError:
            continue
        heard = f"<br><small>heard: {escape(player.heard)}</small>" if player.heard is not None else ""
        note = f" <small>({escape(player.note)})</small>" if player.note else ""
        items.append(
            f"<li>{escape(player.text)}{note}{heard}"
            f'<audio controls preload="none" src="data:audio/flac;base64,{data}"></audio></li>'
        )
    return f'<ol class="sound">{"".join(items)}</ol>' if items else ""
