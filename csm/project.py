"""A conversation as one file, `NAME.csm`: script, settings, voices, takes and their codes; opened, it plays back
bit-identically.

A zip of JSON, one safetensors file of codes and the recordings of the voices. Nothing in it is executed, and what
is read is bounded before it is read.
"""

from __future__ import annotations

from pathlib import Path

from csm.generator import Generator
from csm.session import Session

SUFFIX = ".csm"


def save_project(path: str | Path, session: Session) -> None:
    """Write the session to `path`, which ends in .csm; whole or not at all. Raises `InputError`."""
    raise NotImplementedError


def open_project(path: str | Path, folder: str | Path, generator: Generator | None = None) -> Session:
    """Read a project; the voices' recordings are put into `folder`, which must exist.

    With a `generator`, a project whose takes come from another model or codec is refused. Raises `InputError` in one
    sentence for a file that is damaged, foreign, too large, or from a newer version of this program.
    """
    raise NotImplementedError
