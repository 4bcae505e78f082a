"""What a frame must read and what a model must hold, counted from its config: the floor that figures stand on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from csm.codec import build_codec
from csm.config import ModelConfig, TransformerConfig
from csm.engine import Engine
from csm.model.module import ROWS_AT_ONCE
from csm.model.packed import BYTES, PackedCSM, rounded_by_kernels

MEMORY_LIMIT = 4.5e9  # bytes that CSM-1B in bfloat16 may take with one stream at 2 048 positions


@dataclass(frozen=True)
class Widths:
    """Bytes of one number: in the matrices, in the embeddings, and in whatever is computed, the KV cache among it.

    Where kernels round the layers' matrices, `rounded` is the width of those, which stand beside the others."""

    matrices: float
    embeddings: int
    computed: int
    rounded: int = 0

    @property
    def heads(self) -> float:
        """Heads are in eight bits where the matrices have fewer."""
        return max(1, self.matrices)

    @classmethod
    def of(cls, engine: Engine) -> Widths:
        model = engine.model
        computed = model.projection.weight.dtype.itemsize
        matrices = BYTES[model.packing] if isinstance(model, PackedCSM) else computed
        rounded = 1 if rounded_by_kernels(engine.lineups.weights, engine.device) else 0
        return cls(matrices, model.audio_embeddings.weight.dtype.itemsize, computed, rounded)


def layer_numbers(config: TransformerConfig) -> int:
    """Numbers in the matrices of one stack of layers."""
    attention = 2 * config.dim * (config.heads + config.kv_heads) * config.head_dim
    return config.layers * (attention + 3 * config.dim * config.mlp_dim)


def cache_numbers(config: TransformerConfig, positions: int) -> int:
    """Numbers in the keys and values of `positions` positions."""
    return 2 * config.layers * config.kv_heads * config.head_dim * positions


def frame_bytes(config: ModelConfig, widths: Widths, positions: int, streams: int = 1) -> int:
    """Bytes that one frame of `streams` streams at `positions` positions must read: the backbone and the first head
    once, the depth decoder, its projection and a head K-1 times, and the backbone's keys and values of each stream.

    Norms, the few embeddings and the depth decoder's own small cache are left out: below one percent of CSM-1B's.
    """
    vocab, outer, inner = config.audio_vocab_size, config.backbone.dim, config.decoder.dim
    again = config.num_codebooks - 1
    layers = layer_numbers(config.backbone) + again * layer_numbers(config.decoder)
    heads, others = outer * vocab + again * inner * vocab, again * outer * inner
    matrices = layers * (widths.rounded or widths.matrices) + heads * widths.heads + others * widths.matrices
    return round(matrices) + streams * cache_numbers(config.backbone, positions) * widths.computed


def memory_needed(config: ModelConfig, widths: Widths, positions: int | None = None) -> dict[str, int]:
    """Bytes that one stream takes at `positions` positions (all by default), by part, and `total`.

    The workspaces are those of the largest step there is, reading all positions at once: the embeddings of some rows'
    columns with their masked copy, or one layer's activations.
    """
    positions = positions or config.max_positions
    outer, inner, vocab, k = config.backbone, config.decoder, config.audio_vocab_size, config.num_codebooks
    with torch.device("meta"):
        codec = sum(tensor.numel() for tensor in build_codec(config.codec).module.state_dict().values())
    heads = outer.dim * vocab + (k - 1) * inner.dim * vocab + outer.dim * inner.dim
    columns = 2 * min(positions, ROWS_AT_ONCE) * (k + 1) * outer.dim * widths.embeddings
    layer = positions * (3 * outer.mlp_dim + 6 * outer.dim) * widths.computed
    parts = {
        "weights": round((layer_numbers(outer) + layer_numbers(inner)) * (widths.matrices + widths.rounded))
        + round(heads * widths.heads)
        + (config.text_vocab_size + vocab * k) * outer.dim * widths.embeddings,
        "kv_cache": cache_numbers(outer, positions) * widths.computed,
        "codec": codec * 4,
        "workspaces": max(columns, layer),
    }
    return parts | {"total": sum(parts.values())}
