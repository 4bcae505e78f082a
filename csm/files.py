"""Files that appear whole or not at all: written beside their place, then moved there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csm.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name beside `path` to write to: it takes its place when the block ends well, and goes when it doesn't."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def output(path: Path, *errors: type[Exception]) -> Iterator[Path]:
    """`whole`, for what a user asked for: an `OSError`, or one of `errors`, becomes an `InputError` that says so."""
    refused: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        with whole(path) as part:
            yield part
    except refused as error:
        raise InputError(f"{path} can't be written; choose another place or make room there.") from error
