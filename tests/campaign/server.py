"""The app under the campaign: the real server over a small random model, here or in a process of its own, and what can
be seen of it from outside: its memory, threads, descriptors and files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from csm.web.pages import Pages
from csm.web.server import open_studio, server_options
from csm.web.ui import build_app, launch_options
from tests.serving import free_port
from tests.small import small_generator

TOP = Path(__file__).parent.parent.parent
START_SECONDS = 180.0
HELD = "held.json"  # how long the interpreter was held at most, in the server's folder
MB = 1 << 20


@dataclass(frozen=True)
class Server:
    """A running app: its port, its process, the folder in which alone it may leave files, and what it says aloud."""

    port: int
    pid: int
    folder: Path
    log: Path | None = None


@dataclass(frozen=True)
class Usage:
    """What a process has in use: memory in MB, now and at most, threads, descriptors."""

    memory: float
    peak: float
    threads: int
    descriptors: int


def usage(server: Server) -> Usage:
    """As Linux tells it."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    told = {line.partition(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
    return Usage(int(told["VmRSS"]) / 1024, int(told["VmHWM"]) / 1024, int(told["Threads"]), descriptors)


def forget_peak(server: Server) -> None:
    """Let the peak of its memory begin anew, and the time for which it held the interpreter."""
    (server.folder / HELD).unlink(missing_ok=True)
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def leftovers(server: Server) -> list[str]:
    """Files that nobody has a use for while nothing is going on: of jobs that are over, of projects that were read,
    half written ones, and all that is outside of the app's own folder."""
    found = []
    for path in server.folder.rglob("*"):
        own = path.relative_to(server.folder).parts
        scratch = len(own) > 1 and own[0] == "tmp" and own[1] != ".ses"  # which is onnxruntime's
        if scratch or path.name.startswith(("job-", "opened-")) or path.suffix == ".part":
            found.append("/".join(own))
    return found


def app_model():
    """A small random model whose turns end after a few frames, the same ones for the same seed."""
    generator = small_generator(max_positions=2048)
    model = generator.engine.model
    sample = model.sample_frame

    def sample_frame(state, sampling, noise):
        codes = sample(state, sampling, noise)
        return codes.masked_fill(codes[:, -1:] < 4, 0)

    model.sample_frame = sample_frame
    return generator


@contextmanager
def served_here(folder: Path) -> Iterator[Server]:
    """The app in this process; its environment must say that `folder` is where it may leave files."""
    studio = open_studio(app_model())
    pages = Pages(studio)
    app = build_app(studio, pages)
    kept = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
    _, url, _ = app.launch(**launch_options() | server_options(studio, pages) | kept)
    try:
        yield Server(int(url.rstrip("/").rpartition(":")[2]), os.getpid(), folder)
    finally:
        app.close()
        pages.place.close()


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """The app in a process of its own, which is told to end after the block."""
    port = free_port()
    changed = {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    log = folder.with_suffix(".log")
    with open(log, "wb") as output:
        command = [sys.executable, "-m", "tests.campaign.server"]
        process = subprocess.Popen(command, cwd=TOP, env=os.environ | changed, stdout=output, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The app did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Server(port, process.pid, folder, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def watch(place: Path) -> None:
    """Write down how long at most this process kept its own threads from running, in seconds, and what it was at: what
    a sleeper comes too late by, as far as the process was at work meanwhile and the machine had a core for the sleeper.
    """
    longest, own = 0.0, threading.get_ident()
    while True:
        start, worked, waited = time.monotonic(), time.process_time(), _waited_for_a_core()
        time.sleep(0.01)
        late = time.monotonic() - start - 0.01 - (_waited_for_a_core() - waited)
        held = min(late, time.process_time() - worked)
        if held > (longest if place.exists() else 0.0) + 0.01:
            longest = held
            others = [traceback.extract_stack(at) for thread, at in sys._current_frames().items() if thread != own]
            at = [[f"{line.filename}:{line.lineno} {line.name}" for line in stack[-8:]] for stack in others]
            place.write_text(json.dumps({"seconds": round(held, 3), "at": at}))


def _waited_for_a_core() -> float:
    """Seconds that this thread could have run and did not, because others had the cores; 0 where nobody counts them."""
    counts = Path("/proc/thread-self/schedstat")
    return int(counts.read_text().split()[1]) / 1e9 if counts.exists() else 0.0


def held(server: Server) -> tuple[float, list[list[str]]]:
    """What `watch` wrote down: seconds, and where the other threads were when it ended."""
    place = server.folder / HELD
    told = json.loads(place.read_text()) if place.exists() else {"seconds": 0.0, "at": []}
    return told["seconds"], told["at"]


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with served_here(folder):
        threading.Thread(target=watch, args=(folder / HELD,), daemon=True).start()
        threading.Event().wait()


if __name__ == "__main__":
    main()
