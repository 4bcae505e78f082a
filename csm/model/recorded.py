"""A transformer's steps, recorded once and replayed without Python, which is most of a small model's time on a CPU, and
a sixth of CSM-1B's in int8.

Beside the way from script to sound: `PackedCSM` has such transformers. What is recorded is a TorchScript graph of the
very operations that `Transformer.forward` calls, with the memory and the positions that they work on as its inputs.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from csm.config import TransformerConfig
from csm.model.transformer import Cache, KVCache, Transformer

Step = Callable[[Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]


class _GivenCache(KVCache):
    """A `KVCache` whose newest `count` positions are given, with the memory of each layer up to them."""

    def __init__(self, positions: Tensor, keys: list[Tensor], values: list[Tensor], count: int, first: bool) -> None:
        self._positions, self._keys, self._values, self._count = positions, keys, values, count
        self.length = 0 if first else 1  # all that is asked of it is whether anything came before

    def ahead(self, count: int) -> Tensor:
        return self._positions

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        own, theirs = self._keys[layer], self._values[layer]
        own.narrow(2, -self._count, self._count).copy_(keys)
        theirs.narrow(2, -self._count, self._count).copy_(values)
        return own, theirs


class _Recordable(nn.Module):
    def __init__(self, transformer: Transformer, count: int, first: bool) -> None:
        super().__init__()
        self.transformer, self._count, self._first = transformer, count, first

    def forward(self, x: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        return self.transformer(x, _GivenCache(positions, keys, values, self._count, self._first))


class RecordedTransformer(Transformer):
    """A `Transformer` for inference on a CPU that records its short steps when it first takes them: one position more,
    and two with which a cache begins. Where that fails, they are taken as ever."""

    def __init__(self, config: TransformerConfig, positions: int) -> None:
        super().__init__(config, positions)
        self._steps: dict[tuple[int, bool], Step | None] = {}
        self._recording = threading.Lock()

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        count = x.shape[1]
        if type(cache) is not KVCache or count != (2 if cache.length == 0 else 1):
            return super().forward(x, cache)
        if (end := cache.length + count) > cache.positions or torch.is_grad_enabled():
            return super().forward(x, cache)
        positions = cache.ahead(count)
        keys, values = list(cache.keys.narrow(3, 0, end).unbind()), list(cache.values.narrow(3, 0, end).unbind())
        step = self._step(x, positions, keys, values, cache.length == 0)
        if step is None:
            return super().forward(x, cache)
        cache.length = end
        return step(x, positions, keys, values)

    def _step(self, x: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor], first: bool) -> Step | None:
        kind = x.shape[1], first
        with self._recording:
            if kind not in self._steps:
                self._steps[kind] = self._record(_Recordable(self, *kind), (x, positions, keys, values))
            return self._steps[kind]

    def _record(self, work: nn.Module, inputs: tuple[object, ...]) -> Step | None:
        self.rotary(torch.zeros(1, dtype=torch.int64))  # builds its table, which is to be a constant
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Python decides is the same for every step of a kind
                return torch.jit.trace(work.eval(), inputs, check_trace=False)
        except Exception:  # a torch that can't, or weights in a form that no graph can hold
            return None
