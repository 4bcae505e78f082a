"""One whole frame of several streams at once, with nothing that waits for the device: the innermost step to codes.

`EagerStep` is the reference, in plain torch; kernels that do the same faster take its place, and `GraphedStep`
records either.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from csm.model import CSM, RowSampling, SlotCache, width_for
from csm.settings import Settings

Result = TypeVar("Result")

SPAN = 256  # positions: on CUDA the attention of a step covers a multiple of it, and each multiple is a graph
SPAN_ON_CPU = 32  # nothing is recorded there


class FrameStep(Protocol):
    """What makes the next frame of `slots` streams. Whoever implements it owns keys, values and how rows sample."""

    @property
    def keys(self) -> Tensor:
        """(layers, slots, kv_heads, positions or more, head_dim), at an address that never changes; so `values`.

        Keys are rotated. All of it is finite from the beginning."""
        ...

    @property
    def values(self) -> Tensor: ...

    def set_sampling(self, sampling: Settings, slot: int) -> None:
        """How `slot` samples from the next frame on."""
        ...

    def set_slot_id(self, slot_id: int, slot: int) -> None:
        """What the frames of `slot` carry in the text column from the next one on, in a model whose frames do."""
        ...

    def fit(self, rows: int, longest: int) -> Hashable:
        """Get ready for a frame of the first `rows` slots, none of which will have more than `longest` positions.

        -> its shape: frames of equal shapes launch the same work, so one recording serves them all."""
        ...

    def simplify(self) -> bool:
        """Do the same with less of the device from now on -> whether there was such a way. For a device, or a torch,
        that refuses the usual one."""
        ...

    def step(self, state: Tensor, noise: Tensor, codes_out: Tensor, lengths: Tensor, active: Tensor) -> None:
        """Sample K codes of each active slot, embed them, and take the backbone one position on.

        All tensors are for all slots and written in place; none is waited for, and no shape depends on what they hold:
        `state` (slots, dim), in the model's precision, the backbone's newest state: read, then the next one;
        `noise` float32 (slots, K, V), exponential with mean 1: probabilities are divided by it, the largest is drawn;
        `codes_out` int64 (slots, K): the frame (anything for slots that are not active);
        `lengths` int64 (slots,): positions in use, one more afterwards where `active`, bool (slots,), is true.
        Slots that are not active keep their state, their length, and keys and values of the positions in use. The
        noise of a slot with a top-k of 1 is all ones.
        """
        ...


def or_simpler(step: FrameStep, work: Callable[[], Result]) -> Result:
    """What `work` with `step` gives. If it fails and the step has a simpler way, one warning says so, and it is done
    again."""
    try:
        return work()
    except Exception as error:
        if not step.simplify():
            raise
        warnings.warn(f"Frames are recorded in a simpler way, because {error}.", stacklevel=5)
        return work()


class EagerStep:
    """The reference: `CSM.sample_frame`, then one masked backbone step over the positions up to the longest.

    On CUDA, rows are rounded up to a power of two and positions to a multiple of 256, so there are few shapes. A
    frame is about 8 000 operations at the shape of CSM-1B, nearly each of them a launch, and no synchronisation.
    """

    def __init__(self, model: CSM, slots: int, positions: int) -> None:
        like = model.projection.weight
        self._model, self._slots, self._positions = model, slots, positions
        self._cache = SlotCache(model.config.backbone, positions, slots, like)
        self._temperature = torch.ones(slots, 1, device=like.device)
        self._topk = torch.ones(slots, 1, dtype=torch.int64, device=like.device)
        self._floor = torch.full((slots, 1), -torch.inf, device=like.device)
        self._widths = [width_for(1, model.config.audio_vocab_size)] * slots
        self._floored = [False] * slots
        self._slot_ids = torch.zeros(slots, dtype=torch.int64, device=like.device)
        self._cuda = like.device.type == "cuda"
        self._shape = (slots, positions, model.config.audio_vocab_size, False)

    @property
    def keys(self) -> Tensor:
        return self._cache.keys

    @property
    def values(self) -> Tensor:
        return self._cache.values

    def set_sampling(self, sampling: Settings, slot: int) -> None:
        vocab = self._model.config.audio_vocab_size
        assert sampling.temperature is not None and sampling.topk is not None, "not `filled`"
        self._temperature[slot] = 1.0 if sampling.greedy else sampling.temperature
        self._topk[slot] = min(sampling.topk, vocab)
        self._widths[slot] = width_for(sampling.topk, vocab)
        self._floor[slot] = sampling.floor
        self._floored[slot] = sampling.min_p > 0

    def set_slot_id(self, slot_id: int, slot: int) -> None:
        self._slot_ids[slot] = slot_id

    def fit(self, rows: int, longest: int) -> Hashable:
        """-> rows, positions and top-k width of the frame, and whether any row has a min-p."""
        unit = SPAN if self._cuda else SPAN_ON_CPU
        if self._cuda:
            rows = 1 << (rows - 1).bit_length()
        rows, span = min(rows, self._slots), min(-(-longest // unit) * unit, self._positions)
        self._shape = rows, span, max(self._widths[:rows]), any(self._floored[:rows])
        return self._shape

    def simplify(self) -> bool:
        return False

    def step(self, state: Tensor, noise: Tensor, codes_out: Tensor, lengths: Tensor, active: Tensor) -> None:
        rows, span, width, floored = self._shape
        state, noise, lengths, active = state[:rows], noise[:rows], lengths[:rows], active[:rows]
        floor = self._floor[:rows] if floored else None
        sampling = RowSampling(self._temperature[:rows], self._topk[:rows], width, floor)
        codes = self._model.sample_frame(state, sampling, noise)
        window = self._cache.window(lengths, active, span)
        embedded = self._model.embed_frames(codes, self._slot_ids[:rows])
        hidden = self._model.backbone(embedded[:, None], window)[:, 0]
        codes_out[:rows] = codes
        state.copy_(torch.where(active[:, None], hidden, state))
        lengths.add_(active)


class KernelStep:
    """The fused kernels of `csm.kernels` as a `FrameStep`: they stop at each slot's own length, so all frames have
    one shape. They embed codes alone, so they are for models whose frames carry no slot."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.step = kernels.step
        self.set_sampling = kernels.set_sampling
        self.simplify = kernels.go_in_turn

    @property
    def keys(self) -> Tensor:
        return self._kernels.keys

    @property
    def values(self) -> Tensor:
        return self._kernels.values

    def set_slot_id(self, slot_id: int, slot: int) -> None:
        pass

    def fit(self, rows: int, longest: int) -> Hashable:
        return ()
