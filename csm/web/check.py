"""The tab that checks a file: does it carry the watermark, how surely, and in which parts."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import gradio as gr

from csm.audio import inspect_audio, load_audio
from csm.errors import InputError
from csm.listening.marks import Passage, clock, joined, listen, verdict
from csm.web import markup
from csm.web.asked import FAILED
from csm.web.listeners import listener

LONGEST = 1_800.0  # seconds that are listened to
TOLD_EVERY = 5  # passages between two reports of progress

logger = logging.getLogger(__name__)


def check_file(audio: str | None) -> Iterator[tuple[str, str]]:
    """Look for the watermark in a sound file: the status line and the table of its parts, as HTML, as they become
    known. `audio` is the path of an uploaded file; nothing is raised, refusals are told in the status line."""
    if not audio:
        yield markup.status("Drop a file to have it checked."), ""
        return
    try:
        yield markup.status("Reading the file …", "busy"), ""
        seconds = inspect_audio(audio).seconds
        wave = load_audio(audio, LONGEST)
        found: list[Passage] = []
        for passage in listen(wave):
            if listener().gone():
                return
            found.append(passage)
            if len(found) % TOLD_EVERY == 0:
                heard = f"Listened to {clock(passage.end)} of {clock(min(seconds, LONGEST))} …"
                yield markup.status(heard, "busy"), passages(found)
    except InputError as error:
        yield markup.status(str(error), "error"), ""
        return
    except Exception:
        logger.exception("A check failed.")
        yield markup.status(FAILED, "error"), ""
        return
    rest = f" Only its first {LONGEST / 60:.0f} minutes were listened to." if seconds > LONGEST + 1 else ""
    yield markup.status(verdict(found) + rest, "done"), passages(found)


def passages(found: list[Passage]) -> str:
    """The parts of a file and what each says, as an HTML table; empty for a file of one part."""
    parts = joined(found)
    if len(parts) < 2:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{clock(part.start)} to {clock(part.end)}</th>'
        f"<td>{'marked' if part.marked else 'no mark'}</td><td>{part.confidence:.2f}</td></tr>"
        for part in parts
    )
    return (
        '<table class="csm-turns csm-parts"><caption>Parts</caption><thead><tr><th scope="col">Time</th>'
        f'<th scope="col">Watermark</th><th scope="col">Confidence</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def build_check_tab() -> None:
    """The tab's components; call it inside a `gr.Tab`."""
    gr.Markdown(
        "Drop any sound file to learn whether it carries this program's watermark, which says that a machine made "
        "it. The mark survives MP3, cutting and quieter playing; strong noise can hide it, and music "
        "that nobody marked can come near it. Nothing is kept."
    )
    audio = gr.Audio(sources=["upload"], type="filepath", label="File to check", buttons=[])
    status = gr.HTML(markup.status("Drop a file to have it checked."))
    parts = gr.HTML("")
    audio.change(
        check_file, audio, [status, parts], show_progress="hidden", concurrency_limit=2, api_visibility="private"
    )
