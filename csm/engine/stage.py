"""Where streams speak: slots side by side whose buffers never move, stepped together by one `FrameStep`.

A context's memory is its own. To speak it is copied into a slot, and what was spoken is copied back (67 MB there
and as much back at most, for 2 048 positions of CSM-1B), so one set of CUDA graphs serves every conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.engine.context import Context
from csm.engine.step import FrameStep
from csm.model import CSM
from csm.settings import Settings

WARM_SPAN = 256  # positions: no step has shapes that are closer together


@dataclass(frozen=True)
class Launched:
    """A frame under way: the slots that speak in it, their codes on the host once `done`, the states behind it by
    slot."""

    slots: tuple[int, ...]
    codes: Tensor
    states: Tensor | Mapping[int, Tensor]
    done: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """int64 (slots, K) on the host. The only wait for the device in a frame."""
        if self.done is None:
            return self.codes
        self.done.synchronize()
        return self.codes.clone()  # pinned memory is for passing through


class Stage:
    """Slots 0 to `slots` - 1. Not for two threads at once; all work goes to the current CUDA stream.

    A frame costs one draw of noise for each stream that is not greedy, the step (one launch where it is a graph), a
    copy of the states and an asynchronous one of the codes to pinned memory. A stream that begins to speak or falls
    silent costs one small launch more in that frame.
    """

    @torch.inference_mode()
    def __init__(self, model: CSM, slots: int, step: FrameStep) -> None:
        config, like = model.config, model.projection.weight
        device, k, vocab = like.device, config.num_codebooks, config.audio_vocab_size
        self.slots, self.positions, self._step = slots, config.max_positions, step
        self._device, self._pinned = device, device.type == "cuda"
        self._state = torch.zeros(slots, config.backbone.dim, dtype=like.dtype, device=device)
        self._noise = torch.ones(slots, k, vocab, device=device)
        self._codes = torch.zeros(slots, k, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self._active = torch.zeros(slots, dtype=torch.bool, device=device)
        self._greedy = [True] * slots
        self._held = [0] * slots  # `_lengths`, known here without asking the device
        self._speaking: set[int] = set()  # `_active`

    @torch.inference_mode()
    def enter(self, slot: int, context: Context, sampling: Settings, keep: bool = True) -> None:
        """Put a prefilled context into `slot`, to be spoken from. Raises `ValueError` if nothing was prefilled.

        What is spoken comes back with `leave`, whether or not it is to `keep` that."""
        state, length = context.speaking_state(), context.length
        for own, theirs in ((self._step.keys, context.cache.keys), (self._step.values, context.cache.values)):
            own[:, slot, :, :length] = theirs[:, 0, :, :length]
        self._state[slot] = state[0]
        self._lengths[slot] = self._held[slot] = length
        self._step.set_sampling(sampling, slot)
        self._step.set_slot_id(context.slot_id, slot)
        self._greedy[slot] = sampling.greedy
        if sampling.greedy:
            self._noise[slot] = 1

    @torch.inference_mode()
    def launch(self, speaking: Mapping[int, torch.Generator]) -> Launched:
        """Start the next frame of the slots in `speaking`, with noise from their generators, and don't wait for it."""
        with self._on_device():
            return self._launch(speaking)

    def _launch(self, speaking: Mapping[int, torch.Generator]) -> Launched:
        for slot, generator in speaking.items():
            if not self._greedy[slot]:
                self._noise[slot].exponential_(1, generator=generator)
        for slot in self._speaking.symmetric_difference(speaking):
            self._active[slot] = slot in speaking
        self._speaking = set(speaking)
        self._run(max(speaking) + 1, max(self._held[slot] for slot in speaking) + 1)
        for slot in speaking:
            self._held[slot] += 1
        states, done = self._state.clone(), None
        codes = torch.empty(self._codes.shape, dtype=torch.int64, pin_memory=self._pinned)
        codes.copy_(self._codes, non_blocking=True)
        if self._pinned:
            done = torch.cuda.Event()
            done.record()
        return Launched(tuple(speaking), codes, states, done)

    @torch.inference_mode()
    def leave(self, slot: int, context: Context, frames: int, state: Tensor | None) -> None:
        """Let the context that entered `slot` go on behind the `frames` frames it spoke, at `state` (dim,), if known.

        What the slot computed beyond them is forgotten."""
        begin, end = context.length, context.length + frames
        for own, theirs in ((context.cache.keys, self._step.keys), (context.cache.values, self._step.values)):
            own[:, 0, :, begin:end] = theirs[:, slot, :, begin:end]
        context.cache.length, context.state = end, None if state is None else state[None]

    @torch.inference_mode()
    def warm_up(self, rows: int = 1, positions: int | None = None) -> None:
        """Step with nobody speaking, `rows` slots, at every length up to `positions` (default: all), so that what a
        first frame compiles or records is there. Changes nothing that a stream in a slot needs."""
        for slot in self._speaking:
            self._active[slot] = False
        self._speaking = set()
        longest = self.positions if positions is None else positions
        with self._on_device():
            for length in [*range(WARM_SPAN, longest, WARM_SPAN), longest]:
                self._run(rows, length)

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels are launched, and events recorded, on the thread's current device, which may be another."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _run(self, rows: int, longest: int) -> None:
        self._step.fit(rows, longest)
        self._step.step(self._state, self._noise, self._codes, self._lengths, self._active)
