"""Speech and codes from object storage: a folder such as s3://bucket/speech is copied here, and then what is new of it.

Training reads clips in random order, hundreds for a step, so what is far away is fetched once, a file at a time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from csm.errors import InputError
from csm.files import whole

COPIES, LOCK = Path("runs/copies"), ".lock"
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+([^/].*)")  # `Path` makes one slash of two


def at_hand(folder: Path) -> Path:
    """`folder` itself or, of one such as s3://bucket/speech, its copy under `COPIES`, brought up to date.

    Whatever fsspec reads, with the package that it needs for that. Processes on one machine fetch it once. Raises
    `InputError` where it can't be read or there is nothing.
    """
    found = ADDRESS.fullmatch(folder.as_posix())
    if found is None:
        return folder
    import fsspec
    from filelock import FileLock

    protocol, path = found[1], found[2].rstrip("/")
    address, here = f"{protocol}://{path}", COPIES / protocol / path
    try:
        files = fsspec.filesystem(protocol)
        there: dict[str, dict[str, Any]] = files.find(path, detail=True)
        if not there:
            raise InputError(f"There is nothing at {address}.")
        here.mkdir(parents=True, exist_ok=True)
        with FileLock(here / LOCK):
            wanted = {here / name.partition(f"{path}/")[2]: (name, about["size"]) for name, about in there.items()}
            if any(".." in target.parts or not target.is_relative_to(here) for target in wanted):
                raise InputError(f"{address} has names that lead out of it.")
            for old in {file for file in here.rglob("*") if file.is_file()} - {*wanted, here / LOCK}:
                old.unlink()
            for target, (name, size) in wanted.items():
                _fetch(files, name, size, target)
    except InputError:
        raise
    except Exception as error:  # each store has errors of its own
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{address} can't be read: {told}") from error
    return here


def _fetch(files: Any, name: str, size: int, target: Path) -> None:
    """Copy one file unless it is there with its size and time."""
    try:
        time = files.modified(name).timestamp()
    except NotImplementedError:
        time = None
    if target.is_file() and target.stat().st_size == size and time in (None, target.stat().st_mtime):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as part:
        files.get_file(name, str(part))
        if time is not None:
            os.utime(part, (time, time))
