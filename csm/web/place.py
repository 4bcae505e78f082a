"""Where the server keeps files: one folder for each running server, so that what a dead one left goes when the next
starts, and what nobody asks for goes by the clock."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where an open file can't be deleted
    fcntl = None  # type: ignore[assignment]

from csm.config import Environment
from csm.limits import KEPT_SECONDS, MB

PREFIX = "csm-app-"
LOCK = "running"
MOST_UPLOADED = 8_192 * MB  # bytes of files that are kept for a while


class Place:
    """A folder of this server alone, gone with it. `uploads` is for Gradio's files, `pages` and `voices` for ours."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self._lock = folder, lock
        self._uploaded = 0
        for name in ("uploads", "pages", "voices"):
            (folder / name).mkdir()
        self.uploads, self.pages, self.voices = folder / "uploads", folder / "pages", folder / "voices"

    @classmethod
    def taken(cls, root: Path | None = None) -> Place:
        """A new one, where temporary files are unless the environment says otherwise; those of dead servers go."""
        root = root or Path(Environment.read().uploads or tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(folder, lock)

    def tidy(self) -> None:
        """Delete the files among `uploads` that are older than an hour, and count the rest."""
        oldest, self._uploaded = time.time() - KEPT_SECONDS, 0
        for folder, _, names in os.walk(self.uploads, topdown=False):
            for name in names:
                file = Path(folder, name)
                with suppress(OSError):
                    found = file.stat()
                    if found.st_mtime < oldest:
                        file.unlink()
                    else:
                        self._uploaded += found.st_size
            with suppress(OSError):
                if Path(folder) != self.uploads and Path(folder).stat().st_mtime < oldest:
                    Path(folder).rmdir()  # fails where something is left

    def has_room(self) -> bool:
        """Whether more may be uploaded."""
        return self._uploaded < MOST_UPLOADED

    def close(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            os.close(self._lock)
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep(root: Path) -> None:
    """Delete the folders of servers that no longer run; whoever runs holds a lock."""
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if fcntl is None:
                (folder / LOCK).unlink()
                shutil.rmtree(folder, ignore_errors=True)
                continue
            lock = os.open(folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
