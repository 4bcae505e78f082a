"""How many threads a step takes on a CPU: one for a small model, whose products are too short to share.

A second thread gains 5 % of nano's frame where its core is free, and loses far more where another program has it.
Reading and decoding, which are longer, keep all threads, and so does all that a large model does. No number changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from csm.config import Environment, ModelConfig

SMALL = 512  # width of the backbone
AT_IMPORT = torch.get_num_threads()


class StepThreads:
    """The threads of one model's steps, as is best where it was loaded: what the user chose until then stands."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._usual, self._loaded_in = torch.get_num_threads(), threading.get_ident()
        chosen = Environment.read().threads is not None or self._usual != AT_IMPORT
        small = device.type == "cpu" and config.backbone.dim <= SMALL
        self.single = small and not chosen and self._usual > 1

    @contextmanager
    def few(self) -> Iterator[None]:
        """Within it torch uses one thread for a small model."""
        if not self.single:
            yield
            return
        before = torch.get_num_threads()
        if before == 1 and threading.get_ident() != self._loaded_in:
            before = self._usual  # torch gives a new thread the number that was set last, anywhere: here, by a step
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
