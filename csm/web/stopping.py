"""A stop that cuts nobody off: what runs may end, what comes is sent elsewhere, and only then the server goes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from csm.conversation.studio import Studio

GRACE_SECONDS = 30.0  # that running jobs have when the server is stopped


def stop_gently(studio: Studio, seconds: float = GRACE_SECONDS) -> None:
    """When the process is told to end (SIGTERM), give no more places in the queue, wait `seconds` at most until the
    last job has ended, and then end as by Ctrl+C. A second time it ends at once. Call it in the main thread."""
    stopping = threading.Event()

    def leave() -> None:
        studio.queue.close(seconds)
        os.kill(os.getpid(), signal.SIGTERM)  # the second time

    def told(number: int, frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        threading.Thread(target=leave, name="leave", daemon=True).start()

    signal.signal(signal.SIGTERM, told)
