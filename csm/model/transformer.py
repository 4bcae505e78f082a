"""A Llama-style transformer over embeddings, with an optional KV cache: the backbone and the depth decoder.

Parameter names and the interleaved rotary pairs are those of the original CSM checkpoint (torchtune), so that
file loads as it is. Architecture: Llama 3 (arXiv:2407.21783), RoPE (arXiv:2104.09864), GQA (arXiv:2305.13245).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import RopeConfig, TransformerConfig


def rope_frequencies(head_dim: int, rope: RopeConfig) -> Tensor:
    """Angle per position of each pair, float32 (head_dim / 2,), with Llama 3's scaling of the low frequencies."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.factor == 1:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = rope.original_positions / wavelengths
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / rope.factor)


class RotaryTable(nn.Module):
    """Cosine and sine of every position's angles, (positions, head_dim) each, as `rotate` multiplies by them; built
    when first needed, so a model on the meta device costs nothing and a checkpoint never stores them."""

    def __init__(self, head_dim: int, positions: int, rope: RopeConfig) -> None:
        super().__init__()
        self.head_dim, self.positions, self.rope = head_dim, positions, rope
        self._table: tuple[Tensor, Tensor] | None = None  # no buffer: a cast to bfloat16 must not reach it

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (S,) or (B, S) -> cos, sin of shape (..., S, 1, head_dim)."""
        if self._table is None or self._table[0].device != positions.device:
            angles = torch.outer(
                torch.arange(self.positions, dtype=torch.float32), rope_frequencies(self.head_dim, self.rope)
            ).to(positions.device)
            sin = torch.stack((-angles.sin(), angles.sin()), -1).flatten(-2)
            self._table = angles.cos().repeat_interleave(2, -1), sin
        cos, sin = self._table
        return cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (..., S, heads, head_dim), computed in float32: each number times the cosine, and
    its neighbour times the sine, which is negative for the first of a pair."""
    wide = x.float()
    swapped = wide.view(*x.shape[:-1], -1, 2).flip(-1).view(x.shape)
    return (wide * cos + swapped * sin).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.scale.dtype == torch.float32:
            return F.rms_norm(x, self.scale.shape, self.scale, self.eps)
        wide = x.float()  # rounded once before the scale, as the published model does it
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.scale


class KVCache:
    """Keys and values of every layer for the positions so far; whoever owns the conversation owns it.

    Shape of each: (layers, B, kv_heads, positions, head_dim). It grows by writing at `length`; going back to an
    earlier moment is setting `length`, because what lies beyond it is never read.
    """

    def __init__(self, config: TransformerConfig, positions: int, batch: int, like: Tensor) -> None:
        shape = (config.layers, batch, config.kv_heads, positions, config.head_dim)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.length = 0

    @property
    def positions(self) -> int:
        return self.keys.shape[3]

    def ahead(self, count: int) -> Tensor:
        """The next `count` positions, int64 (count,)."""
        return torch.arange(self.length, self.length + count, device=self.keys.device)

    def copy(self, positions: int) -> KVCache:
        """A cache of its own with the same in it and room for so many positions."""
        made = copy.copy(self)
        shape = (*self.keys.shape[:3], positions, self.keys.shape[4])
        made.keys, made.values = self.keys.new_empty(shape), self.values.new_empty(shape)
        for own, theirs in ((made.keys, self.keys), (made.values, self.values)):
            own[:, :, :, : self.length] = theirs[:, :, :, : self.length]
        return made

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, kv_heads, S, head_dim) behind what is there; returns all keys and values of the layer."""
        end = self.length + keys.shape[2]
        if end > self.positions:
            raise IndexError(f"The KV cache holds {self.positions} positions; {end} were asked for.")
        own, theirs = self.keys[layer], self.values[layer]
        own.narrow(2, self.length, keys.shape[2]).copy_(keys)
        theirs.narrow(2, self.length, keys.shape[2]).copy_(values)
        return own.narrow(2, 0, end), theirs.narrow(2, 0, end)


class SlotCache:
    """Keys and values of streams that differ in length, at addresses that never change: a row (slot) for each.

    Shape of each: (layers, slots, kv_heads, positions + 1, head_dim). The one position more takes what rows that stand
    still write. All of it is zero at first, because what a mask hides is still multiplied, by zero.
    """

    def __init__(self, config: TransformerConfig, positions: int, slots: int, like: Tensor) -> None:
        shape = (config.layers, slots, config.kv_heads, positions + 1, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.positions = positions

    def window(self, lengths: Tensor, active: Tensor, span: int) -> SlotWindow:
        """The first `len(lengths)` slots for one step behind `lengths`, int64 (B,), all of which are below `span`
        where `active`, bool (B,), is true."""
        return SlotWindow(self, lengths, active, span)


class SlotWindow:
    """What one position more for each row of a `SlotCache` reads and writes. No shape depends on the lengths."""

    def __init__(self, cache: SlotCache, lengths: Tensor, active: Tensor, span: int) -> None:
        self._cache, self._span = cache, span
        self._rows = torch.arange(len(lengths), device=lengths.device)
        self._at = torch.where(active, lengths, cache.positions)
        self._lengths = lengths.clamp_max(cache.positions - 1)
        reach = torch.arange(span, device=lengths.device)
        self.mask = (reach <= lengths[:, None])[:, None, None, :]

    def ahead(self, count: int) -> Tensor:
        """The next position of each row, int64 (B, 1)."""
        return self._lengths[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, kv_heads, 1, head_dim) behind what each row has; returns keys and values up to the span."""
        rows, own, theirs = len(self._rows), self._cache.keys[layer], self._cache.values[layer]
        own[self._rows, :, self._at] = keys[:, :, 0]
        theirs[self._rows, :, self._at] = values[:, :, 0]
        return own[:rows, :, : self._span], theirs[:rows, :, : self._span]


class SideBySide:
    """The `KVCache`s of streams that step together, a row of the batch each: every one grows in its own memory.

    A row attends to its own positions and to nothing else, just as it does alone."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches

    def ahead(self, count: int) -> Tensor:
        """The next position of each row, int64 (B, 1)."""
        like = self.caches[0].keys
        return torch.tensor([[cache.length] for cache in self.caches], device=like.device)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Put (B, kv_heads, 1, head_dim) behind what each row has; returns the layer's keys and values of each."""
        pairs = zip(keys.split(1), values.split(1))
        return [cache.write(layer, *pair) for cache, pair in zip(self.caches, pairs, strict=True)]

    def grow(self) -> None:
        """What was written at one position of each row stays."""
        for cache in self.caches:
            cache.length += 1


Cache = KVCache | SlotWindow | SideBySide


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.dim, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, self.kv_heads * self.head_dim, bias=False)
        self.output_proj = nn.Linear(self.heads * self.head_dim, config.dim, bias=False)

    def queries_keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, dim) -> rotated queries (B, heads, S, head_dim) and keys (B, kv_heads, S, head_dim)."""
        q, k = self._by_head(self.q_proj(x)), self._by_head(self.k_proj(x))
        return rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2)

    def queries_keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and values (B, kv_heads, S, head_dim)."""
        return *self.queries_keys(x, cos, sin), self._by_head(self.v_proj(x)).transpose(1, 2)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, cache: Cache | None) -> Tensor:
        q, k, v = self.queries_keys_values(x, cos, sin)
        if isinstance(cache, SideBySide):
            each = zip(q.split(1), cache.write(layer, k, v))
            y = torch.cat([self._one_query(own, *past) for own, past in each])
            return self.output_proj(y.transpose(1, 2).flatten(2))
        past = cache.length if isinstance(cache, KVCache) else 0
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if isinstance(cache, SlotWindow):
            y = self._one_query(q, k, v, cache.mask)
        elif past == 0:
            several = bool(q.shape[2] > 1)  # in a recording numbers of a shape are tensors
            y = F.scaled_dot_product_attention(q, k, v, is_causal=several, enable_gqa=True)
        elif q.shape[2] == 1:
            y = self._one_query(q, k, v)
        else:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(past)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.output_proj(y.transpose(1, 2).flatten(2))

    def _one_query(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """One step of decoding: the queries of a KV group share its keys, so they become one small matrix."""
        grouped = q.view(q.shape[0], self.kv_heads, -1, self.head_dim)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).view(q.shape)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.w2 = nn.Linear(config.mlp_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.mlp_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sa_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, cache: Cache | None) -> Tensor:
        x = x + self.attn(self.sa_norm(x), cos, sin, layer, cache)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Embeddings (B, S, dim) -> hidden states (B, S, dim) after the final norm."""

    def __init__(self, config: TransformerConfig, positions: int) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.rotary = RotaryTable(config.head_dim, positions, config.rope)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """With a `KVCache`, x continues after `cache.length` positions, and the cache grows by S. With the window of
        a `SlotCache`, S is 1, each row continues behind its own length, and the lengths are left to their owner.
        `SideBySide`, S is 1, too, and each row's cache grows."""
        count = x.shape[1]
        cos, sin = self.rotary(torch.arange(count, device=x.device) if cache is None else cache.ahead(count))
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, index, cache)
        if isinstance(cache, KVCache):
            cache.length += count
        elif isinstance(cache, SideBySide):
            cache.grow()
        return self.norm(x)
