"""A frame as one CUDA graph: what a `FrameStep` launches is recorded once for each shape and then replayed.

Between the stage, whose buffers it is recorded over, and the kernels, which it makes cheap to launch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from csm.engine.step import FrameStep, or_simpler
from csm.settings import Settings

Replay = Callable[[], object]
Record = Callable[[Callable[[], None]], Replay]

WARM_UPS = 3  # runs before recording: compile kernels, build tables, let cuBLAS take its workspace


class Recorder:
    """Records work on a CUDA device, one at a time, as graphs that share one memory pool: they never run at the same
    time, since all are replayed on one stream, and what they leave is in buffers that were there before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._guard = threading.Lock()

    def __call__(self, work: Callable[[], None]) -> Replay:
        """Run `work` a few times on a stream at the side, then record it there. Raises `RuntimeError`."""
        with self._guard, torch.cuda.device(self._device):
            here = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
            here.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on allocating and copying meanwhile
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
            self._pool = self._pool or graph.pool()
        return graph.replay


class GraphedStep:
    """A `FrameStep` that records another one, lazily: one graph for each of its shapes.

    A frame is then one launch. The tensors given must be at the same addresses each time (the stage sees to it).
    If recording fails, `inner` is asked for a simpler way, which is recorded instead; if it has none, it is called
    directly from then on. One warning says so.
    """

    def __init__(self, inner: FrameStep, record: Record) -> None:
        self.inner = inner
        self._record = record
        self._graphs: dict[Hashable, Replay] = {}
        self._shape: Hashable = None
        self._gave_up = False

    @property
    def keys(self) -> Tensor:
        return self.inner.keys

    @property
    def values(self) -> Tensor:
        return self.inner.values

    @property
    def recorded(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def set_sampling(self, sampling: Settings, slot: int) -> None:
        self.inner.set_sampling(sampling, slot)

    def set_slot_id(self, slot_id: int, slot: int) -> None:
        self.inner.set_slot_id(slot_id, slot)

    def fit(self, rows: int, longest: int) -> Hashable:
        self._shape = self.inner.fit(rows, longest)
        return self._shape

    def simplify(self) -> bool:
        return self.inner.simplify()

    def step(self, state: Tensor, noise: Tensor, codes_out: Tensor, lengths: Tensor, active: Tensor) -> None:
        def work() -> None:
            self.inner.step(state, noise, codes_out, lengths, active)

        if self._shape not in self._graphs and not self._gave_up:
            self._add(work, active)
        self._graphs.get(self._shape, work)()

    def _add(self, work: Callable[[], None], active: Tensor) -> None:
        """Record `work`. Nobody is active meanwhile, so that the runs before recording change nothing."""
        speaking = active.clone()
        active.zero_()
        try:
            self._graphs[self._shape] = or_simpler(self.inner, lambda: self._record(work))
        except Exception as error:  # what is wrong with the work itself, calling it will show
            self._gave_up = True
            warnings.warn(f"No CUDA graph could be recorded ({error}); frames are stepped without.", stacklevel=4)
        finally:
            active.copy_(speaking)
