"""One replica: the whole app in this process, behind a gate, and what it says of itself."""

from __future__ import annotations

import hashlib
import shutil
import socket
from typing import Any

import torch

from csm.config import Environment
from csm.limits import MB
from csm.speech.generator import Generator
from csm.version import __version__
from csm.web.access import Access
from csm.web.cluster.gate import Gate
from csm.web.cluster.roster import LEAVING, READY, STARTING, Standing
from csm.web.pages import Pages
from csm.web.server import open_studio, server_options, warm_up
from csm.web.ui import build_app, launch_options
from csm.web.v1.shelf import Shelf

LEAST_ROOM = 64 * MB  # bytes on the disk, below which a replica says so
NO_ROOM = "The disk of this replica is full: pages can't keep their sound there."
SAMPLED = 64  # values of every tensor that tell weights apart


class Replica:
    """The app over `generator`, at a free port of `address`. It believes who knows `secret`; `listens_at` is where the
    front does, and `shelf` keeps the voices that programs bring to any of them."""

    def __init__(
        self, id: str, generator: Generator, address: str, secret: str, listens_at: str | None, shelf: Shelf | None
    ) -> None:
        self.id, self._generator = id, generator
        self._studio = open_studio(generator)
        self._pages = Pages(self._studio, access=Access.of(Environment.read(), listens_at))
        self._app = build_app(self._studio, self._pages)
        self._speaks = speaks(generator)
        self._beat = 0
        options = server_options(
            self._studio, self._pages, shelf=shelf, outermost=lambda app: Gate(app, secret, address)
        )
        port = _free_port(address)
        self._app.launch(
            **launch_options() | options, server_name=address, server_port=port, prevent_thread_lock=True, quiet=True
        )
        self._url = f"http://{address}:{port}"
        warm_up(self._studio)  # after the server is up, which has little time for that

    def standing(self, generation: float) -> Standing:
        """How it does."""
        self._beat += 1
        speaking, waiting = self._studio.queue.counts()
        state = LEAVING if self._studio.queue.closing else STARTING if self._studio.unready() else READY
        return Standing(
            self.id, self._url, state, self._trouble(),
            self._generator.model_name, str(self._generator.device), self._speaks, self._studio.queue.slots,
            speaking, waiting, self._beat, generation,
        )  # fmt: skip

    def leave(self, seconds: float) -> bool:
        """Begin no more jobs and wait until the last one has ended, `seconds` at most -> whether it has."""
        return self._studio.queue.close(seconds)

    def close(self) -> None:
        """The server ends, and its folder goes."""
        self._app.close()
        self._pages.place.close()

    def broken(self) -> str:
        """Why it has to be replaced, in one sentence; empty while its server runs."""
        server: Any = self._app.server
        return "" if server is not None and server.thread.is_alive() else "The server of this replica has ended."

    def _trouble(self) -> str:
        try:
            free = shutil.disk_usage(self._pages.place.folder).free
        except OSError:
            free = 0
        return NO_ROOM if free < LEAST_ROOM else ""


def speaks(generator: Generator) -> str:
    """The program, the model and its weights, as a name: two that have the same give the same sound for a seed."""
    digest = hashlib.sha256(generator.codec_key.encode())
    codec = {f"codec.{name}": tensor for name, tensor in generator.codec.module.state_dict().items()}
    for name, tensor in sorted((generator.engine.model.state_dict() | codec).items()):
        if isinstance(tensor, torch.Tensor):
            some = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)][:SAMPLED]
            digest.update(f"{name} {tuple(tensor.shape)} {some.float().tolist()}".encode())
    return f"csm {__version__}, {generator.model_name} {digest.hexdigest()[:8]}"


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
