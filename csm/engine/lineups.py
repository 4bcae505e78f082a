"""The lineups of one model: built for so many streams, lent for a turn, and kept for the next one, graphs and all.

Between the engine, which has contexts, and the kernels, whose weights are packed once for however many lineups.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from csm.engine.graph import GraphedStep, Recorder
from csm.engine.in_place import InPlaceStage
from csm.engine.lineup import Lineup
from csm.engine.stage import Stage
from csm.engine.step import EagerStep, FrameStep, KernelStep, or_simpler
from csm.errors import InputError
from csm.kernels import available
from csm.model import CSM


class Lineups:
    """`weights` is what fused kernels read on CUDA: the model's own, or rounded to "int8" or "float8"."""

    def __init__(self, model: CSM, weights: str) -> None:
        self.weights = weights
        self._model, self._positions = model, model.config.max_positions
        self._idle: defaultdict[int, list[Lineup]] = defaultdict(list)  # by slots
        self._building = threading.Lock()
        self._recorder: Recorder | None = None
        self._kernel_weights: Any = None

    @property
    def _device(self) -> torch.device:
        return self._model.projection.weight.device

    def new(self, slots: int, ahead: int | None = None, step: FrameStep | None = None) -> Lineup:
        """Room for `slots` streams side by side. On CUDA their frames are graphs, launched one `ahead`; elsewhere each
        speaks in its own memory.

        `step` is what makes frames for `slots` slots, if it isn't to be the fastest there is."""
        cuda = self._device.type == "cuda"
        if step is None and not cuda:
            return Lineup(InPlaceStage(self._model, slots), ahead or 0)
        with self._building:
            if step is None:
                step = self._frame_step(slots)
            if cuda and not isinstance(step, GraphedStep):
                self._recorder = self._recorder or Recorder(self._device)
                step = GraphedStep(step, self._recorder)
        return Lineup(Stage(self._model, slots, step), (1 if cuda else 0) if ahead is None else ahead)

    @contextmanager
    def lend(self, streams: int) -> Iterator[Lineup]:
        """A lineup that nobody is in, with room for so many streams at least; who is still in it at the end leaves.

        Those of CUDA are kept: nothing is allocated or recorded the second time. Elsewhere they hold memory only."""
        slots = 1 << (streams - 1).bit_length()
        try:
            lineup = self._idle[slots].pop()
        except IndexError:
            lineup = self.new(slots)
        try:
            yield lineup
        finally:
            lineup.clear()
            if self._device.type == "cuda":
                self._idle[slots].append(lineup)

    def _frame_step(self, slots: int) -> FrameStep:
        """The fastest there is for this device: fused kernels if they run, else plain torch. Raises `InputError` for
        unknown weights."""
        if available(self._device) and not self._model.config.slots_in_frames:
            try:
                return self._kernels(slots)
            except InputError:
                raise
            except Exception as error:  # a compiler or a device that they weren't written for
                warnings.warn(f"The fused kernels can't be used ({error}); plain torch steps instead.", stacklevel=4)
        return EagerStep(self._model, slots, self._positions)

    def _kernels(self, slots: int) -> FrameStep:
        frame = importlib.import_module("csm.kernels.frame")
        if self._kernel_weights is None:
            self._kernel_weights = frame.KernelWeights(self._model, self.weights)
        step = KernelStep(frame.FrameKernels(self._kernel_weights, slots, self._positions))
        stage = Stage(self._model, slots, step)
        or_simpler(step, lambda: stage.warm_up(positions=1))  # so that what can't run is known now
        return step
