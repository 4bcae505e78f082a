"""What a page writes to the disk: the files that it offers for download, and how many of them stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from csm.audio import write_audio
from csm.conversation import exports
from csm.conversation.project import SUFFIX, save_project
from csm.conversation.session import Session
from csm.errors import InputError
from csm.speech.generator import Generator

NO_ROOM = "The server has no room for what is to be written: try again later."
SAVED = {
    "wav": "conversation.wav",
    "mp3": "conversation.mp3",
    "flac": "conversation.flac",
    "stems": "stems.zip",
    "srt": "conversation.srt",
    "vtt": "conversation.vtt",
    "zip": "conversation.zip",
    "csm": f"conversation{SUFFIX}",
}


def write(kind: str, place: Path, session: Session, generator: Generator, marked: Tensor) -> None:
    """Write one of `SAVED` to `place`; `marked` is the whole conversation's sound. Raises `InputError`."""
    if kind == "csm":
        save_project(place, session)
    elif kind in ("srt", "vtt"):
        exports.write_subtitles(place, session.spans(), marked)
    elif kind == "zip":
        exports.write_all(place, session, generator, marked)
    elif kind == "stems":
        exports.write_stems(place.with_suffix(""), marked, session.spans())
        shutil.make_archive(str(place.with_suffix("")), "zip", place.with_suffix(""))
        shutil.rmtree(place.with_suffix(""))
    else:
        write_audio(place, marked)


def only_newest(folder: Path, pattern: str, most: int) -> None:
    """Delete all files or folders of that name in `folder` but the `most` newest."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[most:]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def roomy() -> Iterator[None]:
    """A disk that is full is told without the names of the server's folders."""
    try:
        yield
    except OSError as error:
        raise InputError(NO_ROOM, "no_room") from error
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise InputError(NO_ROOM, "no_room") from error
        raise
