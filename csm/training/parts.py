"""Work that many machines share: each makes some of the shards, into one folder or folders that are copied together.

A shard depends on the run's options and its own number alone, so whichever machine makes it, it is the same.
"""

from __future__ import annotations

import hashlib
import re
from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from csm.errors import InputError


@dataclass(frozen=True)
class Part:
    """Job `number` of `count`, counted from 1; `shard in part` says whether it makes that shard."""

    number: int = 1
    count: int = 1

    def __contains__(self, shard: int) -> bool:
        return shard % self.count == self.number - 1

    @classmethod
    def read(cls, text: str) -> Part:
        """From `2/8`, for the command line. Raises `ArgumentTypeError`."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ArgumentTypeError(f"{text} is no part: write 2/8 for the second of eight jobs")
        return cls(int(found[1]), int(found[2]))


EVERYTHING = Part()


def digest(texts: Iterable[str]) -> str:
    """A name for these texts in this order."""
    made = hashlib.sha256()
    for text in texts:
        made.update(text.encode() + b"\0")
    return made.hexdigest()[:16]


def agree(folder: Path, what: str, made_from: str) -> None:
    """Note in `folder`, as an empty file `what.made_from`, what its shards are made from, or refuse to add others.

    The name alone says it, so that jobs may start at once and folders be copied together. Raises `InputError`.
    """
    mine = folder / f"{what}.{made_from}"
    begun = mine.exists()
    mine.touch()
    if others := [other.name for other in folder.glob(f"{what}.*") if other != mine]:
        if not begun:
            mine.unlink(missing_ok=True)
        raise InputError(
            f"The shards in {folder} are made from something else ({others[0]}, here it is {mine.name}): give all jobs "
            "the same options and packages, or choose another folder."
        )


def unwritten(what: str, folder: Path, error: OSError) -> str:
    """The sentence for shards that a disk does not take."""
    return (
        f"The {what} can't be written to {folder} ({error.strerror or error}): make room and give the same command "
        "again, to go on from the last shard."
    )
