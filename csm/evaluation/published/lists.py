"""Lists that others publish: what to say, and whose voice to say it in.

Seed-TTS-eval (Anastassiou et al. 2024): a line is `name|prompt's text|prompt's recording|text`, with paths beside the
list and, in some lists, a recording of the text as a fifth part. A manifest of JSON lines has `text`, `prompt_text` and
`prompt_audio_filepath` (and `id`), as the Open TTS Leaderboard's do.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from csm.errors import InputError

SHOWN = 3  # missing recordings that are named


@dataclass(frozen=True)
class Item:
    """`text`, to be said in the voice of `recording`, in which `transcript` is said."""

    name: str
    transcript: str
    recording: Path
    text: str


def read_list(path: Path, most: int | None = None) -> list[Item]:
    """The items of a list, the first `most` of them. Raises `InputError` for a list that can't be read, a line that
    isn't one, two of one name, and where recordings are missing, before anything is spoken."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list {path} can't be read: give a text file in UTF-8, such as meta.lst.") from error
    read = _manifest_line if path.suffix in (".jsonl", ".json") else _bar_line
    items = [read(path, number, line) for number, line in enumerate(lines, 1) if line.strip()][:most]
    if not items:
        raise InputError(f"The list {path} is empty.")
    if twice := [name for name, count in Counter(item.name for item in items).items() if count > 1]:
        raise InputError(f"The list {path} has more than one line named {twice[0]}: give each a name of its own.")
    missing = list(dict.fromkeys(item.recording for item in items if not item.recording.is_file()))
    if missing:
        beside = path.parent
        shown = [file.relative_to(beside) if file.is_relative_to(beside) else file for file in missing[:SHOWN]]
        names = ", ".join(map(str, shown))
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InputError(f"Recordings of the list {path} are missing: {names}{more}. They belong beside it.")
    return items


def _bar_line(path: Path, number: int, line: str) -> Item:
    parts = [part.strip() for part in line.split("|")]
    if len(parts) not in (4, 5) or not all(parts[:4]):
        raise InputError(f"Line {number} of {path} can't be read: it needs name|prompt text|prompt recording|text.")
    name, transcript, recording, text = parts[:4]
    return Item(_plain(name), transcript, path.parent / recording, text)


def _manifest_line(path: Path, number: int, line: str) -> Item:
    try:
        found = json.loads(line)
        recording, transcript, text = (found[key] for key in ("prompt_audio_filepath", "prompt_text", "text"))
        if not all(isinstance(one, str) and one.strip() for one in (recording, transcript, text)):
            raise ValueError("no words")
        return Item(_plain(str(found.get("id", f"sample_{number - 1}"))), transcript, path.parent / recording, text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"Line {number} of {path} can't be read: it needs text, prompt_text and prompt_audio_filepath as JSON."
        ) from error


def _plain(name: str) -> str:
    """A name that can be a file's: without folders."""
    return name.replace("/", "_").replace("\\", "_").removesuffix(".wav")
