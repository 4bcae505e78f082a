"""What all replicas share: who is there, the secret that the front shows them, and the voices that programs bring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from csm.errors import InputError
from csm.speech.voices import Voice
from csm.web.cluster.roster import Roster, Standing
from csm.web.v1.shelf import Shelf, ShelvedVoice

NEW_SECONDS = 3.0  # in which every replica says something several times
UNREACHABLE = "The voices of this cluster can't be reached at the moment; try again in a few seconds."


class Register:
    """One for each cluster, in a process of its own. `secret` is what the front shows the replicas. Voices are kept as
    `Shelf` keeps them: in memory for a day or, in `folder`, until they are deleted. Refusals are answers, because
    exceptions change on their way between processes. `clock` gives seconds."""

    def __init__(self, secret: str, folder: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._roster, self._secret = Roster(clock), secret
        self._clock, self._since = clock, clock()
        self._folder = Path(folder) if folder else None
        self._shelves: dict[str, Shelf] = {}

    def tell(self, standing: Standing) -> None:
        """Note what a replica says."""
        self._roster.tell(standing)

    def secret(self) -> str:
        """What the front shows the replicas."""
        return self._secret

    def standings(self) -> list[Standing] | None:
        """All replicas; None while it is too new to have heard of them, because the one before it has died."""
        return None if self._clock() - self._since < NEW_SECONDS else self._roster.standings()

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

    def offered(self, owner: str) -> Mapping[str, Voice]:
        return _Fetched(lambda: super(SharedShelf, self).offered(owner))

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


class _Fetched(Mapping[str, Voice]):
    """Voices that are fetched when somebody looks: most requests name one that every replica has."""

    def __init__(self, fetch: Callable[[], Mapping[str, Voice]]) -> None:
        self._fetch = fetch

    @cached_property
    def _voices(self) -> Mapping[str, Voice]:
        return self._fetch()

    def __getitem__(self, name: str) -> Voice:
        return self._voices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._voices)

    def __len__(self) -> int:
        return len(self._voices)
