"""The voices that programs bring: each known to whoever brought it alone, as codes and words, for a day.

The recording itself is not kept. On the disk a voice is only where the host named a folder for it (`CSM_VOICES`), and
there it stays until it is deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import HTTPConnection

from csm.errors import InputError
from csm.files import whole
from csm.speech.voices import MOST_CODES, Voice, voice_name

VOICE_SECONDS = 86_400.0  # for which a voice is kept
MOST_VOICES, MOST_IN_ALL = 64, 2_048  # of one key, and of all
ID = re.compile(r"voice_[0-9a-f]{24}")


@dataclass(frozen=True)
class ShelvedVoice:
    """A voice of somebody's own. `created` and `expires` are seconds since 1970; None: it stays until it is deleted."""

    id: str
    owner: str
    voice: Voice
    created: float
    expires: float | None


def owner_of(connection: HTTPConnection) -> str:
    """Whose voices somebody may use, by a name that says nothing about them: all who show the same key, or else all who
    ask from the same address."""
    client = connection.client.host if connection.client else ""
    shown = connection.headers.get("authorization", "").strip() or f"from {client}"
    return hashlib.sha256(shown.encode("utf-8", "replace")).hexdigest()[:32]


class Shelf:
    """All of them, for any thread."""

    def __init__(self, codec: str, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._codec, self._folder, self._clock = codec, folder, clock
        self._kept: dict[str, ShelvedVoice] = {}
        self._guard = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("voice_*.json")):
                if (found := _read(path, codec)) is not None:
                    self._kept[found.id] = found

    def add(self, owner: str, voice: Voice) -> ShelvedVoice:
        """Keep an encoded `voice`. Raises `InputError` for a name in use, and where no more are kept."""
        with self._guard:
            self._forget()
            own = {one.voice.name: one.voice for one in self._kept.values() if one.owner == owner}
            voice_name(voice.name, own)
            if len(own) >= MOST_VOICES or len(self._kept) >= MOST_IN_ALL:
                raise InputError(f"At most {MOST_VOICES} voices are kept: delete one first.", "too_many_voices")
            now = self._clock()
            expires = None if self._folder else now + VOICE_SECONDS
            kept = ShelvedVoice(f"voice_{secrets.token_hex(12)}", owner, voice, now, expires)
            if self._folder is not None:
                _write(self._folder, kept)
            self._kept[kept.id] = kept
            return kept

    def of(self, owner: str) -> list[ShelvedVoice]:
        """The voices of one owner, the oldest first."""
        with self._guard:
            self._forget()
            return [one for one in self._kept.values() if one.owner == owner]

    def offered(self, owner: str) -> Mapping[str, Voice]:
        """The same by id and by name."""
        own = self.of(owner)
        return {one.voice.name: one.voice for one in own} | {one.id: one.voice for one in own}

    def find(self, owner: str, id: str) -> ShelvedVoice | None:
        """The voice of that id, where it is this owner's."""
        return next((one for one in self.of(owner) if one.id == id), None)

    def remove(self, owner: str, id: str) -> bool:
        """Forget a voice -> whether it was there, and this owner's."""
        if self.find(owner, id) is None:
            return False
        with self._guard:
            self._kept.pop(id, None)
        if self._folder is not None:
            (self._folder / f"{id}.json").unlink(missing_ok=True)
        return True

    def _forget(self) -> None:
        now = self._clock()
        self._kept = {id: one for id, one in self._kept.items() if one.expires is None or one.expires > now}


def _write(folder: Path, kept: ShelvedVoice) -> None:
    assert kept.voice.codes is not None
    about: dict[str, Any] = {"owner": kept.owner, "name": kept.voice.name, "transcript": kept.voice.transcript}
    about |= {"description": kept.voice.description, "codec": kept.voice.codec, "created": kept.created}
    text = json.dumps(about | {"codes": kept.voice.codes.tolist()}, ensure_ascii=False)
    try:
        with whole(folder / f"{kept.id}.json") as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError("The voice can't be kept: the server has no room for it.") from error


def _read(path: Path, codec: str) -> ShelvedVoice | None:
    """A voice that `_write` wrote; None for what is none, and for one that another codec heard."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(path.read_text(encoding="utf-8"))
        codes = np.asarray(about["codes"], np.int32)
        if ID.fullmatch(path.stem) and about["codec"] == codec and codes.ndim == 2 and len(codes) <= MOST_CODES:
            voice = Voice(
                str(about["name"]), Path(), str(about["transcript"]), description=str(about["description"]),
                codes=codes, codec=codec,
            )  # fmt: skip
            return ShelvedVoice(path.stem, str(about["owner"]), voice, float(about["created"]), None)
    return None
