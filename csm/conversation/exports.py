"""A spoken conversation as files: sound in several formats, a stem for each speaker, subtitles, all in one zip.

The last step from script to sound. What is written here was marked once, as a whole; stems are cut from it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from csm.audio import write_audio
from csm.config import SAMPLE_RATE
from csm.conversation.cues import cues
from csm.conversation.project import save_project
from csm.conversation.script import Span
from csm.conversation.session import Session
from csm.errors import InputError
from csm.files import output
from csm.speech.generator import Generator

SOUND = (".wav", ".mp3", ".flac")
SUBTITLES = (".srt", ".vtt")


def stems(marked: Tensor, spans: list[Span]) -> Iterator[tuple[str, Tensor]]:
    """The marked whole, float32 (num_samples,) -> each speaker with the same length, silent where others speak; one
    after the other, since an hour of eight would not fit into memory."""
    for speaker in dict.fromkeys(span.speaker for span in spans):
        part = torch.zeros_like(marked)
        for span in spans:
            if span.speaker == speaker:
                part[span.start : span.end] = marked[span.start : span.end]
        yield speaker, part


def write_stems(folder: str | Path, marked: Tensor, spans: list[Span], suffix: str = ".wav") -> list[Path]:
    """Write one sound file a speaker, named after them, into `folder`, which is made if need be.

    Raises `InputError` when the folder can't be made or written to.
    """
    folder = Path(folder)
    check_folder(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} can't be made; choose another place for the stems.") from error
    written = []
    names = file_names(list(dict.fromkeys(span.speaker for span in spans)))
    for name, (_, part) in zip(names, stems(marked, spans)):
        written.append(folder / f"{name}{suffix}")
        write_audio(written[-1], part)
    return written


def check_folder(folder: str | Path) -> None:
    """Raise `InputError` when stems could not be written there; ask before an hour of work, not after it."""
    folder = Path(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file; give a folder for the stems.")
    if not os.path.isdir(folder.absolute().parent):
        raise InputError(f"There is no folder {folder.absolute().parent}; make it first or choose another place.")


def file_names(speakers: list[str]) -> list[str]:
    """A file name for each speaker, without an ending: letters, digits, `-` and `_`, each different in any case."""
    names: list[str] = []
    for number, speaker in enumerate(speakers, 1):
        name = re.sub(r"[^\w-]+", "_", speaker).strip("_") or f"speaker_{number}"
        taken = {other.casefold() for other in names}
        names.append(f"{name}_{number}" if name.casefold() in taken else name)
    return names


def subtitles(spans: list[Span], kind: str, sound: Tensor | None = None) -> str:
    """Subtitles as text; `kind` is `.srt` or `.vtt`. Times are exact to the millisecond that the formats know.

    A turn has as many cues as it needs: two lines of 42 letters each. With the whole `sound`, float32 (num_samples,),
    they change where it is quiet. Turns without any sound have none. Raises `InputError` for another kind.
    """
    if kind not in SUBTITLES:
        raise InputError(f"There are no {kind or 'such'} subtitles; end the name in {' or '.join(SUBTITLES)}.")
    webvtt = kind == ".vtt"
    comma = "." if webvtt else ","
    blocks = ["WEBVTT"] if webvtt else []
    for cue in cues(spans, sound, prefixed=not webvtt):
        begin, end = _clock(cue.start, comma), _clock(cue.end, comma)
        if begin != end:
            text = "\n".join(map(_escaped, cue.lines) if webvtt else cue.lines)
            said = f"<v {_escaped(cue.speaker)}>{text}" if webvtt else text
            number = len(blocks) + (not webvtt)
            blocks.append(f"{number}\n{begin} --> {end}\n{said}")
    return "\n\n".join(blocks) + "\n"


def check_subtitles(path: str | Path) -> None:
    """Raise `InputError` when `write_subtitles` could not write there."""
    path = Path(path)
    subtitles([], path.suffix.lower())
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise InputError(f"{path} can't be written; give the name of a file in a folder that is there.")


def write_subtitles(path: str | Path, spans: list[Span], sound: Tensor | None = None) -> None:
    """Write `subtitles` as .srt or .vtt, as the name ends; whole or not at all. Raises `InputError`."""
    check_subtitles(path)
    path = Path(path)
    with output(path) as part:
        part.write_text(subtitles(spans, path.suffix.lower(), sound), encoding="utf-8")


def write_all(path: str | Path, session: Session, generator: Generator, marked: Tensor | None = None) -> None:
    """One zip with everything: the sound as .wav, .mp3 and .flac, stems, subtitles, report and project.

    `marked` is `session.whole(generator)` where it is at hand already. Raises `InputError` when nothing has been
    spoken, and when the place can't be written.
    """
    spans = session.spans()
    if not spans:
        raise InputError("Nothing has been spoken yet: there is nothing to save.")
    marked = session.whole(generator) if marked is None else marked
    path = Path(path)
    with (
        output(path) as part,
        tempfile.TemporaryDirectory(prefix=".", dir=path.absolute().parent) as scratch,
        zipfile.ZipFile(part, "x") as archive,
        _said_of(path, folder := Path(scratch)),
    ):
        for suffix in SOUND:
            write_audio(folder / f"conversation{suffix}", marked)
        for suffix in SUBTITLES:
            write_subtitles(folder / f"conversation{suffix}", spans, marked)
        report = json.dumps(session.report(generator), indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(report + "\n", encoding="utf-8")
        save_project(folder / "conversation.csm", session)
        write_stems(folder / "stems", marked, spans)
        for file in sorted(folder.rglob("*.*")):
            packed = zipfile.ZIP_DEFLATED if file.suffix in (".wav", ".srt", ".vtt", ".json") else zipfile.ZIP_STORED
            archive.write(file, file.relative_to(folder).as_posix(), packed)


@contextmanager
def _said_of(path: Path, scratch: Path) -> Iterator[None]:
    """What can't be written into the `scratch` folder is told as what it is to the user: `path` can't be."""
    try:
        yield
    except InputError as error:
        if str(scratch) not in str(error):
            raise
        raise InputError(f"{path} can't be written; choose another place or make room there.") from error.__cause__


def _clock(samples: int, comma: str) -> str:
    """Samples at 24 kHz -> `00:00:01,234`."""
    milliseconds = round(samples * 1000 / SAMPLE_RATE)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{comma}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
