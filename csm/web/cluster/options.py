"""What a cluster is asked to be: how many replicas, what each has of the machine, how long one may take to leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from csm.errors import InputError

MOST_REPLICAS = 256
RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
NOT_A_RANGE = f"Replicas can't be {{}}: write a number, such as 2, or a range, such as 1-4, up to {MOST_REPLICAS}."


@dataclass(frozen=True)
class ClusterOptions:
    """`replicas` is a number or a range such as 1-4 between which it scales by itself; `cores` is what each has of the
    CPU's: whole numbers are pinned to it, a part is a share, and None leaves it to Ray. `grace` is how many seconds
    running jobs have to end when a replica leaves. `model`, `device`, `adapter` and `weights` are those of `csm.load`,
    `host` is where the front listens, `share` how many replicas one GPU takes."""

    replicas: str = "1"
    cores: float | None = None
    share: int = 1
    grace: float = 30.0
    model: str | None = None
    device: str = "auto"
    adapter: str | None = None
    weights: str | None = None
    host: str | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> ClusterOptions:
        """From a mapping of texts, such as Serve's arguments. Raises `InputError`."""
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise InputError(f"A cluster has no option {name}: choose among {', '.join(sorted(known))}.")
        try:
            numbers: dict[str, Any] = {
                name: kind(given[name])
                for name, kind in (("cores", float), ("share", int), ("grace", float))
                if given.get(name) is not None
            }
        except (TypeError, ValueError) as error:
            raise InputError("cores, share and grace are numbers.") from error
        texts = {name: str(value) for name, value in given.items() if name not in numbers and value is not None}
        return cls(**texts | numbers).checked()

    def checked(self) -> ClusterOptions:
        """Itself. Raises `InputError` for what is not possible."""
        fewest, most = self.range
        if not 1 <= fewest <= most <= MOST_REPLICAS:
            raise InputError(NOT_A_RANGE.format(self.replicas))
        if self.cores is not None and not 0.1 <= self.cores <= 1024:
            raise InputError(f"{self.cores:g} cores are not possible: give 0.1 or more to each replica.")
        if not 1 <= self.share <= 16:
            raise InputError(f"{self.share} replicas can't share a GPU: choose 1 to 16.")
        if not 0 <= self.grace <= 3600:
            raise InputError(f"{self.grace:g} seconds of grace are not possible: choose 0 to 3600.")
        return self

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most replicas. Raises `InputError`."""
        found = RANGE.fullmatch(self.replicas.strip())
        if found is None:
            raise InputError(NOT_A_RANGE.format(self.replicas))
        return int(found[1]), int(found[2] or found[1])

    @property
    def threads(self) -> int | None:
        """OpenMP's threads of each replica; None: as many as there are cores."""
        return None if self.cores is None else max(1, int(self.cores))
