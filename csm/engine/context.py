"""One conversation's memory between rows and frames: a KV cache of its own, and moments in it to come back to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csm.model import KVCache


@dataclass(frozen=True)
class Snapshot:
    """A moment to come back to: how many positions were in use, and the state at the last of them."""

    length: int
    state: Tensor | None


class Context:
    """One growing context. `length` positions are in use; `prefilled` counts those that were read in, not sampled.

    It only grows, except when it is rewound to a snapshot. `slot_id` is the text column of the newest row that was
    read: what sampled frames carry, in a model whose frames carry their speaker's slot.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.state: Tensor | None = None
        self.prefilled = 0
        self.slot_id = 0

    @property
    def length(self) -> int:
        return self.cache.length

    def speaking_state(self) -> Tensor:
        """The state to sample the next frame from, (B, dim). Raises `ValueError` before the first prefill."""
        if self.state is None:
            raise ValueError("Nothing has been prefilled: there is no state to speak from.")
        return self.state

    def itself(self) -> Context:
        """What `Stream.begin` is for a context that is there already."""
        return self

    @torch.inference_mode()
    def copy(self, room: int) -> Context:
        """A context of its own that is where this one is, with `room` more positions."""
        state, past = self.speaking_state(), self.cache
        made = Context(past.copy(past.length + room))
        made.state, made.slot_id = state, self.slot_id
        return made

    def snapshot(self) -> Snapshot:
        return Snapshot(self.cache.length, self.state)

    def rewind(self, snapshot: Snapshot) -> None:
        """Back to `snapshot`, which must lie in this context's past; nothing is computed again."""
        if snapshot.length > self.cache.length:
            raise ValueError("A context can only be rewound to its own past.")
        self.cache.length, self.state = snapshot.length, snapshot.state
