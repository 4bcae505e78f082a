"""What a long evaluation has done so far, in a folder: a line for each thing that was spoken, and its sound.

An evaluation that was interrupted goes on where it stopped: what is in the folder is not spoken again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from csm.audio import write_audio
from csm.errors import InputError
from csm.files import whole
from csm.watermark import mark

RESULTS, SETTINGS = "results.jsonl", "settings.json"

Record = dict[str, Any]


class Store:
    """Records by their key. Without a `folder` they last as long as the program.

    `settings` are what the records depend on. Raises `InputError` for a folder that can't be written to, or holds
    records that were made with other settings.
    """

    def __init__(self, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.records: dict[str, Record] = {}  # by key, in the order in which they were made
        if folder is None:
            return
        told = json.dumps(settings or {}, indent=2, sort_keys=True) + "\n"
        file, lines = folder / SETTINGS, folder / RESULTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                with whole(file) as part:
                    part.write_text(told, encoding="utf-8")
            elif file.read_text(encoding="utf-8") != told:
                raise InputError(
                    f"The folder {folder} holds an evaluation of another model or with other settings: choose another "
                    "for --out, or remove that one."
                )
            self.records = _read(lines)
            with whole(lines) as part:  # without a last line that was cut off
                part.write_text("".join(map(_line, self.records.values())), encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The folder {folder} can't be written to: choose another for --out.") from error

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        """The record of `key`, made now unless it is there."""
        if key not in self.records:
            record = {"key": key, **make()}
            if self.folder is not None:
                try:
                    with (self.folder / RESULTS).open("a", encoding="utf-8") as file:
                        file.write(_line(record))
                except OSError as error:
                    raise InputError(f"The folder {self.folder} can't be written to: make room there.") from error
            self.records[key] = record
        return self.records[key]

    def keep(self, name: str, wave: Tensor) -> str | None:
        """Write float32 (num_samples,), watermarked, and return the file's name; None where nothing is kept."""
        if self.folder is None or not wave.numel():
            return None
        write_audio(self.folder / f"{name}.flac", mark(wave))
        return f"{name}.flac"


def _read(file: Path) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (ValueError, TypeError, KeyError):
            break
    return records


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
