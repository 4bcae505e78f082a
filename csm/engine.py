"""Prefill, step, snapshot, rewind: the only owner of KV caches between rows of ids and sampled frames.

A `Context` is one conversation's memory; it only grows, except when it is rewound to a snapshot. The engine
itself holds weights and nothing else, so any number of contexts can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.frames import Rows, audio_rows
from csm.model import CSM, KVCache, Sampling


@dataclass(frozen=True)
class Snapshot:
    """A moment to come back to: how many positions were in use, and the state at the last of them."""

    length: int
    state: Tensor | None


class Context:
    """One growing context. `length` positions are in use; `prefilled` counts those that were read in, not sampled."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.state: Tensor | None = None
        self.prefilled = 0

    @property
    def length(self) -> int:
        return self.cache.length

    def snapshot(self) -> Snapshot:
        return Snapshot(self.cache.length, self.state)

    def rewind(self, snapshot: Snapshot) -> None:
        """Back to `snapshot`, which must lie in this context's past; nothing is computed again."""
        if snapshot.length > self.cache.length:
            raise ValueError("A context can only be rewound to its own past.")
        self.cache.length, self.state = snapshot.length, snapshot.state


class Engine:
    def __init__(self, model: CSM) -> None:
        self.model = model
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.projection.weight.device

    def new_context(self) -> Context:
        like = self.model.projection.weight
        return Context(KVCache(self.config.backbone, self.config.max_positions, 1, like))

    @torch.inference_mode()
    def prefill(self, context: Context, rows: Rows) -> None:
        """Read rows into the context. Raises `IndexError` when they don't fit."""
        self._read(context, rows)
        context.prefilled += len(rows)

    @torch.inference_mode()
    def step(self, context: Context, sampling: Sampling, generator: torch.Generator) -> Tensor:
        """Sample the next frame, int64 (K,), and feed it back. All zeros is the end of the turn."""
        if context.state is None:
            raise ValueError("Nothing has been prefilled: there is no state to speak from.")
        codes = self.model.sample_frame(context.state, sampling, generator)
        self._read(context, audio_rows(codes))
        return codes[0]

    @torch.inference_mode()
    def fork(self, context: Context, copies: int, room: int) -> Context:
        """Contexts side by side, each a copy of `context` with `room` further positions; for `step_each` only."""
        if context.state is None:
            raise ValueError("Nothing has been prefilled: there is no state to speak from.")
        past, length = context.cache, context.length
        fork = Context(KVCache(self.config.backbone, length + room, copies, context.state))
        for own, theirs in ((fork.cache.keys, past.keys), (fork.cache.values, past.values)):
            own[:, :, :, :length] = theirs[:, :, :, :length]
        fork.cache.length, fork.state = length, context.state.expand(copies, -1)
        return fork

    @torch.inference_mode()
    def step_each(self, fork: Context, sampling: Sampling, noise: Sequence[torch.Generator]) -> Tensor:
        """Sample the next frame of every copy with its own noise, int64 (copies, K), and feed them back."""
        assert fork.state is not None
        codes = self.model.sample_frame(fork.state, sampling, noise)
        rows = audio_rows(codes)
        self._read(fork, Rows(rows.ids[:, None], rows.mask[:, None]))
        return codes

    @torch.inference_mode()
    def adopt(self, context: Context, fork: Context, copy: int, frames: int) -> None:
        """Let `context` go on as copy number `copy` did for its first `frames` frames, without reading them again.

        The zero frame that ends the turn is fed here, and the state is that behind it.
        """
        begin, end = context.length, context.length + frames
        for own, theirs in ((context.cache.keys, fork.cache.keys), (context.cache.values, fork.cache.values)):
            own[:, 0, :, begin:end] = theirs[:, copy, :, begin:end]
        context.cache.length = end
        self.close(context)

    @torch.inference_mode()
    def close(self, context: Context) -> None:
        """End a turn that did not end itself: feed the zero frame."""
        zeros = torch.zeros(1, self.config.num_codebooks, dtype=torch.int64, device=self.device)
        self._read(context, audio_rows(zeros))

    def _read(self, context: Context, rows: Rows) -> None:
        """Rows (S, K+1) into a context of one, or (B, S, K+1) into a fork."""
        ids, mask = rows.ids.to(self.device), rows.mask.to(self.device)
        if ids.dim() == 2:
            ids, mask = ids[None], mask[None]
        hidden = self.model.backbone(self.model.embed_rows(ids, mask), context.cache)
        context.state = hidden[:, -1]
