"""The small pieces of HTML that the page shows while a script is being spoken: notes, status and the turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from csm.conversation import Line
from csm.voices import Voice

LONGEST_TABLE = 200  # turns; more than any conversation has positions for


@dataclass(frozen=True)
class TurnRow:
    """One turn on the page. `state` is `waiting`, `speaking`, `ended`, `capped`, `stopped` or `not spoken`."""

    speaker: str
    voice: str
    text: str
    state: str = "waiting"
    seconds: float | None = None


def rows(lines: Sequence[Line], voices: dict[str, str]) -> list[TurnRow]:
    """Every turn of a script, waiting; `voices` maps a speaker to the displayed name of the voice."""
    return [TurnRow(line.speaker, voices[line.speaker], line.text) for line in lines]


def turns(table: Sequence[TurnRow]) -> str:
    """The turns as an HTML table."""
    if not table:
        return '<p class="csm-empty">The turns appear here, each as soon as it is spoken.</p>'
    body = "".join(_row(number, row) for number, row in enumerate(table[:LONGEST_TABLE], 1))
    more = f"<p>… and {len(table) - LONGEST_TABLE} more turns.</p>" if len(table) > LONGEST_TABLE else ""
    return (
        '<table class="csm-turns"><caption>Turns</caption><thead><tr><th scope="col">#</th>'
        '<th scope="col">Speaker</th><th scope="col">Text</th><th scope="col">State</th>'
        f'<th scope="col">Seconds</th></tr></thead><tbody>{body}</tbody></table>{more}'
    )


def _row(number: int, row: TurnRow) -> str:
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return (
        f'<tr data-state="{escape(row.state)}"><td>{number}</td>'
        f'<th scope="row">{escape(row.speaker)}<small>{escape(row.voice)}</small></th>'
        f'<td class="csm-text">{escape(row.text)}</td>'
        f'<td><span class="csm-state">{escape(row.state)}</span></td><td>{seconds}</td></tr>'
    )


def sample(slot: str, voice: Voice) -> str:
    """A small player with the recording of a shipped voice, which `launch_options` allows the server to give out."""
    # Gradio's own player without a waveform breaks the page in 6.17.3, and one with a waveform is four times as tall.
    source = escape(f"gradio_api/file={quote(str(voice.path.resolve()))}")
    label = f"How voice {escape(slot)} sounds"
    return (
        f'<figure class="csm-sample"><figcaption>{label}</figcaption>'
        f'<audio controls preload="none" src="{source}" aria-label="{label}"></audio></figure>'
    )


def status(sentence: str, kind: str = "quiet") -> str:
    """The status line; `kind` is `quiet`, `busy`, `done`, `warning` or `error`."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="csm-status" data-kind="{kind}" role="{role}">{escape(sentence)}</p>'


def waiting(ahead: int, seconds: float) -> str:
    """One sentence for someone whose turn with the model has not come."""
    return f"Waiting for the model: {ahead} before you, about {max(1, round(seconds))} s …"


def note(sentence: str) -> str:
    """A sentence beside the input that caused it."""
    return f'<p class="csm-note">{escape(sentence)}</p>'


def summary(report: dict[str, Any]) -> str:
    """One sentence on a finished conversation, from its report."""
    count = len(report["turns"])
    if not report["audio_seconds"]:
        return "There is no sound: no turn got as far as its first frame."
    return (
        f"{count} turn{'' if count == 1 else 's'}, {report['audio_seconds']:.1f} s of sound made in "
        f"{report['generation_seconds']:.1f} s: real-time factor {report['real_time_factor']:.2f}, "
        f"first sound after {report['first_audio_seconds']:.2f} s, seed {report['seed']}."
    )
