"""A spoken conversation as files: sound in several formats, a stem for each speaker, subtitles, all in one zip.

The last step from script to sound. What is written here was marked once, as a whole; stems are cut from it.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from csm.generator import Generator
from csm.session import Session, Span

SOUND = (".wav", ".mp3", ".flac")
SUBTITLES = (".srt", ".vtt")


def stems(marked: Tensor, spans: list[Span]) -> dict[str, Tensor]:
    """The marked whole, float32 (num_samples,) -> for each speaker the same length, silent where others speak."""
    raise NotImplementedError


def subtitles(spans: list[Span], kind: str) -> str:
    """Subtitles as text; `kind` is `.srt` or `.vtt`. Times are exact to the millisecond that the formats know."""
    raise NotImplementedError


def check_subtitles(path: str | Path) -> None:
    """Raise `InputError` when `write_subtitles` could not write there."""
    raise NotImplementedError


def write_subtitles(path: str | Path, spans: list[Span]) -> None:
    """Write .srt or .vtt, as the name ends."""
    raise NotImplementedError


def write_stems(folder: str | Path, marked: Tensor, spans: list[Span]) -> list[Path]:
    """Write one wav file a speaker, named after them, into `folder`, which is made if need be."""
    raise NotImplementedError


def write_all(path: str | Path, session: Session, generator: Generator) -> None:
    """One zip with everything: conversation.wav, .mp3 and .flac, stems, subtitles, report.json and the project."""
    raise NotImplementedError
