"""How many threads torch takes for a step on a CPU: one for a small model, whose products are too short to share.

A second thread gains 5 % of nano's frame where its core is free, and loses far more where another program has it.
A model whose steps are graphs of ONNX Runtime takes one, too: the graphs' threads are others, and two kinds of them
wait for each other's cores sixty times a frame. Reading keeps all threads, and so does all that another large model
does, unless it is done beside its steps. All are the cores that may be used (`csm.threads`). No number changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from csm.config import Environment, ModelConfig

SMALL = 512  # width of the backbone
AT_IMPORT = Environment.usual_threads(torch.get_num_threads())
if AT_IMPORT != torch.get_num_threads():
    torch.set_num_threads(AT_IMPORT)


class StepThreads:
    """The threads of one model's steps, as is best where it was loaded: what the user chose until then stands, and with
    a model `in_graphs` is what these take."""

    def __init__(self, config: ModelConfig, device: torch.device, in_graphs: bool = False) -> None:
        self._usual, self._loaded_in = torch.get_num_threads(), threading.get_ident()
        chosen = Environment.read().threads is not None or self._usual != AT_IMPORT
        small = config.backbone.dim <= SMALL and not chosen
        self.single = device.type == "cpu" and (small or in_graphs) and self._usual > 1

    def few(self) -> AbstractContextManager[None]:
        """Within it torch uses one thread for a small model and one in graphs, and all for any other."""
        if self.single:
            return self.one()
        self.regain()
        return nullcontext()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Within it torch uses one thread."""
        self.regain()
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def regain(self) -> None:
        """Give the thread that calls all threads for what it does. torch gives a new one the number that was set last,
        anywhere: one, if somebody's work took `one` at that moment."""
        if torch.get_num_threads() == 1 != self._usual and threading.get_ident() != self._loaded_in:
            torch.set_num_threads(self._usual)
