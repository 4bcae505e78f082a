"""What all replicas share: who is there, the secret that the front shows them, and the voices that programs bring."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csm.errors import InputError
from csm.speech.voices import Voice
from csm.web.cluster.roster import Roster, Standing
from csm.web.v1.shelf import Shelf, ShelvedVoice

UNREACHABLE = "The voices of this cluster can't be reached at the moment; try again in a few seconds."


class Register:
    """One for each cluster, in a process of its own. Voices are kept as `Shelf` keeps them: in memory for a day or, in
    `folder`, until they are deleted. Refusals are answers, because exceptions change on their way between processes."""

    def __init__(self, folder: str | None = None) -> None:
        self._roster, self._secret = Roster(), secrets.token_hex(24)
        self._folder = Path(folder) if folder else None
        self._shelves: dict[str, Shelf] = {}

    def tell(self, standing: Standing) -> str:
        """Note what a replica says -> the secret."""
        self._roster.tell(standing)
        return self._secret

    def secret(self) -> str:
        """What the front shows the replicas."""
        return self._secret

    def standings(self) -> list[Standing]:
        """All replicas."""
        return self._roster.standings()

    def shelf(self, codec: str, method: str, *inputs: Any) -> Any:
        """What that method of the shelf for a codec's voices answers, or the refusal."""
        if method not in ("add", "of", "remove"):
            raise ValueError(method)
        shelf = self._shelves.setdefault(codec, Shelf(codec, self._folder))
        try:
            return getattr(shelf, method)(*inputs)
        except InputError as error:
            return error


class SharedShelf(Shelf):
    """A shelf that is kept elsewhere: `ask` has the register's do something."""

    def __init__(self, codec: str, ask: Callable[..., Any]) -> None:
        super().__init__(codec)
        self._ask = ask

    def add(self, owner: str, voice: Voice) -> ShelvedVoice:
        return self._asked("add", owner, voice)

    def of(self, owner: str) -> list[ShelvedVoice]:
        return self._asked("of", owner)

    def remove(self, owner: str, id: str) -> bool:
        return self._asked("remove", owner, id)

    def _asked(self, method: str, *inputs: Any) -> Any:
        try:
            answer = self._ask(self._codec, method, *inputs)
        except Exception as error:
            raise InputError(UNREACHABLE, "voices_unreachable") from error
        if isinstance(answer, InputError):
            raise answer
        return answer
