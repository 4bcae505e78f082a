"""A model's frames, recorded once and replayed without Python, which is most of a small model's time on a CPU, and a
sixth of CSM-1B's in int8. While one is replayed other threads have Python for themselves.

Beside the way from script to sound: `PackedCSM` is such a model. What is recorded are TorchScript graphs of the very
operations that `CSM.sample_frame` and `Transformer.forward` call, for any number of streams.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import ModelConfig, TransformerConfig
from csm.model.module import CSM
from csm.model.sampling import RowSampling
from csm.model.transformer import Cache, KVCache, Layer, SlotWindow, Transformer
from csm.settings import Settings

Step = Callable[[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]
Work = TypeVar("Work")
Frame = Callable[..., Tensor]  # state, temperature, top-k, noise, and the floor where rows have one


class _Recording(Generic[Work]):
    """Work that is recorded when it is first asked for, by whichever thread; one at a time, as torch's warnings are
    everybody's."""

    _making = threading.Lock()

    def __init__(self) -> None:
        self.made: list[Work | None] = []  # nothing yet, or what came of it

    def get(self, record: Callable[[], Work]) -> Work | None:
        """What `record` made, now or before; None if it could not."""
        if self.made:
            return self.made[0]
        with self._making:
            if not self.made:
                try:
                    self.made.append(record())
                except Exception:  # a torch that can't, or weights in a form that no graph can hold
                    self.made.append(None)
            return self.made[0]


def attended(q: Tensor, k: Tensor, v: Tensor, layer: int, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What the newest position of each row attends to, (B, heads, 1, head_dim), in that row's memory, (layers, 1,
    kv_heads, positions, head_dim) each, whose last position is written here."""
    found: list[Tensor] = []
    for row in range(len(keys)):
        own, theirs, query = keys[row].select(0, layer), values[row].select(0, layer), q.narrow(0, row, 1)
        own.narrow(2, -1, 1).copy_(k.narrow(0, row, 1))
        theirs.narrow(2, -1, 1).copy_(v.narrow(0, row, 1))
        grouped = query.reshape(1, own.size(1), -1, own.size(3))
        found.append(F.scaled_dot_product_attention(grouped, own, theirs).view(query.size()))
    return torch.cat(found)


class _Before(nn.Module):
    """A layer up to its attention."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.norm, self.attn = layer.sa_norm, layer.attn

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.attn.queries_keys_values(self.norm(x), cos, sin)


class _Behind(nn.Module):
    """A layer from its attention on."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.output, self.norm, self.mlp = layer.attn.output_proj, layer.mlp_norm, layer.mlp

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.output(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm(x))


class _Step(nn.Module):
    """One position more of streams of any number. For `torch.jit.script`, which keeps the loop over them."""

    def __init__(self, before: list[nn.Module], behind: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.before, self.behind, self.norm = nn.ModuleList(before), nn.ModuleList(behind), norm

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        for layer, (before, behind) in enumerate(zip(self.before, self.behind)):
            q, k, v = before(x, cos, sin)
            x = behind(x, attended(q, k, v, layer, keys, values))
        return self.norm(x)


class RecordedTransformer(Transformer):
    """A `Transformer` for inference on a CPU that records the step of one position more, alone or side by side, when it
    is first taken. Where that fails, it is taken as ever."""

    def __init__(self, config: TransformerConfig, positions: int) -> None:
        super().__init__(config, positions)
        self.step = _Recording[Step]()

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if cache is None or isinstance(cache, SlotWindow) or x.shape[1] != 1 or torch.is_grad_enabled():
            return super().forward(x, cache)
        caches = [cache] if isinstance(cache, KVCache) else cache.caches
        if torch.jit.is_tracing() or not all(0 < one.length < one.positions for one in caches):
            return super().forward(x, cache)
        cos, sin = self.rotary(cache.ahead(1))
        step = self.step.get(lambda: self._record(x, cos, sin))
        if step is None:
            return super().forward(x, cache)
        keys = [row for one in caches for row in one.keys.narrow(3, 0, one.length + 1).split(1, dim=1)]
        values = [row for one in caches for row in one.values.narrow(3, 0, one.length + 1).split(1, dim=1)]
        hidden = step(x, cos, sin, keys, values)
        for one in caches:
            one.length += 1
        return hidden

    def _record(self, x: Tensor, cos: Tensor, sin: Tensor) -> Step:
        layers = cast(list[Layer], self.layers)
        before = [_traced(_Before(layer), x, cos, sin) for layer in layers]
        q, _, _ = before[0](x, cos, sin)
        behind = [_traced(_Behind(layer), x, q) for layer in layers]
        return torch.jit.script(_Step(before, behind, _traced(self.norm, x)))


class _Frame(nn.Module):
    def __init__(self, model: CSM, width: int) -> None:
        super().__init__()
        self.model, self._width = model, width

    def forward(
        self, state: Tensor, temperature: Tensor, topk: Tensor, noise: Tensor, floor: Tensor | None = None
    ) -> Tensor:
        return CSM.sample_frame(self.model, state, RowSampling(temperature, topk, self._width, floor), noise)


class RecordedCSM(CSM):
    """A `CSM` for inference on a CPU that records how a frame is sampled, all codebooks in one, when it first samples
    one. Where that fails, frames are sampled as ever."""

    stack = RecordedTransformer
    recorded = True  # unless a model's steps can't be

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # By whether a top-k is the whole vocabulary, and whether any row has a min-p: without one it costs nothing.
        self.frame = {kind: _Recording[Frame]() for kind in product((False, True), repeat=2)}

    def sample_frame(self, state: Tensor, sampling: Settings | RowSampling, noise: Tensor | None) -> Tensor:
        if not self.recorded or torch.is_grad_enabled():
            return super().sample_frame(state, sampling, noise)
        streams, vocab = len(state), self.config.audio_vocab_size
        rows = (
            RowSampling.new([sampling] * streams, vocab, state.device) if isinstance(sampling, Settings) else sampling
        )
        if noise is None:
            noise = torch.ones(streams, self.config.num_codebooks, vocab, device=state.device)
        inputs = state, rows.temperature, rows.topk, noise, *(() if rows.floor is None else (rows.floor,))
        kind = rows.width == vocab, rows.floor is not None
        frame = self.frame[kind].get(lambda: self._record(rows.width, inputs))
        return super().sample_frame(state, rows, noise) if frame is None else frame(*inputs)

    def _record(self, width: int, inputs: tuple[Tensor, ...]) -> Frame:
        self.decoder.rotary(torch.zeros(1, dtype=torch.int64))  # builds its table, which is to be a constant
        return _traced(_Frame(self, width), *inputs)


def _traced(work: nn.Module, *inputs: object) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python decides is the same for every step of a kind
        return torch.jit.trace(work.eval(), inputs, check_trace=False)
