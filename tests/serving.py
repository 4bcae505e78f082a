"""`csm serve --cluster` as a process, for tests that look at it from outside."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

TOP = Path(__file__).parent.parent
PATIENCE = 1200  # seconds; several replicas start on few cores
ALONE = {"OMP_NUM_THREADS": "1", "CSM_LISTEN": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(TOP)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(true: Callable[[], Any], process: subprocess.Popen, about: Callable[[], Any] = str) -> Any:
    """Until `true` is, while `process` runs -> what it was; `about` says what there was instead."""
    give_up = time.monotonic() + PATIENCE
    while not (found := true()):
        assert process.poll() is None and time.monotonic() < give_up, about()
        time.sleep(0.2)
    return found


class Serving:
    """A running cluster: `told` are the lines that it has written, `web` asks its front."""

    def __init__(self, *options: str, **environment: str) -> None:
        port = free_port()
        command = [sys.executable, "-m", "csm", "serve", "--cluster", "--port", str(port), *options]
        self.process = subprocess.Popen(
            command, cwd=TOP, env={**os.environ, **ALONE, **environment}, stderr=subprocess.PIPE, text=True
        )
        self.told: list[str] = []
        threading.Thread(target=self._reads, daemon=True).start()
        self.web = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False)

    def _reads(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.append(line.rstrip())

    def replicas(self) -> list[dict[str, Any]]:
        """What `/health` says of each; nothing while the front is not up."""
        try:
            return self.web.get("/health").json()["replicas"]
        except httpx.TransportError:
            return []

    def named(self, state: str) -> list[str]:
        """The replicas in that state."""
        return [one["id"] for one in self.replicas() if one["state"] == state]

    def wait(self, true: Callable[[], Any]) -> Any:
        """Until `true` is -> what it was."""
        return wait_for(true, self.process, lambda: (self.replicas(), self.told))

    def wait_for_ready(self, count: int) -> list[str]:
        """Until so many replicas take requests -> their names."""
        return self.wait(lambda: len(found := self.named("ready")) == count and found)

    def speak(self, seed: int, text: str) -> str:
        """`200` and how much was heard of `text`, or what came instead."""
        asked, count = {"input": text, "voice": "alloy", "response_format": "pcm", "seed": seed}, 0
        try:
            with self.web.stream("POST", "/v1/audio/speech", json=asked) as answer:
                if answer.status_code != 200:
                    return f"{answer.status_code} {answer.read().decode()}"
                for piece in answer.iter_raw():
                    count += len(piece)
        except httpx.TransportError:
            return "broken off"
        return f"200 {count}"

    def processes(self, name: str) -> list[Any]:
        """Those of Ray's that do what `name` says."""
        import psutil

        return [one for one in psutil.Process(self.process.pid).children(recursive=True) if name in one.name()]

    def end(self) -> int:
        """Stop it -> its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        finally:
            self.process.kill()


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[Serving]:
    """A cluster that serves, ended after the block."""
    one = Serving(*options, **environment)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.end()
