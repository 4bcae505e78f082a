"""Zip files from strangers: how much they hold is bounded before it is read. Beside the way from script to sound."""

from __future__ import annotations

import zipfile
from pathlib import Path

from csm.errors import InputError
from csm.limits import FREE_UNPACKED, MOST_ENTRIES, MOST_UNPACKED

END, END_64 = b"PK\x05\x06", b"PK\x06\x07"
END_BYTES, LONGEST_COMMENT = 22, 65_535


class Archive:
    """A zip file that is open for reading; `read` gives a member's bytes. Raises `zipfile.BadZipFile` for what is none,
    and `InputError` for one that holds more than its size allows."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        size = self._path.stat().st_size
        self._check_list(size)
        self._left = FREE_UNPACKED + MOST_UNPACKED * size
        self._file = zipfile.ZipFile(self._path)
        self.names = self._file.namelist()

    def read(self, name: str, most: int) -> bytes:
        """One member, which unpacks to at most `most` bytes: what it says of itself is not taken on trust."""
        most = min(most, self._left)
        with self._file.open(name) as member:
            data = member.read(most + 1)
        if len(data) > most:
            raise self._too_large()
        self._left -= len(data)
        return data

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _check_list(self, size: int) -> None:
        """The list of members stands at the end, and all of it is read at once."""
        with open(self._path, "rb") as file:
            file.seek(max(0, size - END_BYTES - LONGEST_COMMENT - 20))
            tail = file.read()
        at = tail.rfind(END)
        if at < 0 or len(tail) < at + END_BYTES:
            raise zipfile.BadZipFile("No list of members.")
        count = int.from_bytes(tail[at + 10 : at + 12], "little")
        listed = int.from_bytes(tail[at + 12 : at + 16], "little")
        if END_64 in tail[max(0, at - 64) : at] or count > MOST_ENTRIES or listed > 1_024 * MOST_ENTRIES:
            raise self._too_large()

    def _too_large(self) -> InputError:
        told = f"{self._path.name} is too large to be opened: it unpacks to more than such a file may."
        return InputError(told, "too_long")
