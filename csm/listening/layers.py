"""A clip rebuilt from its first codebooks alone: what residual vector quantisation adds, layer by layer, by ear."""

from __future__ import annotations

import torch
from torch import Tensor

from csm.codec import Codec


def steps(num_codebooks: int) -> list[int]:
    """1, 2, 4, 8, ... and at last all of them."""
    doubling = [1 << power for power in range(num_codebooks.bit_length()) if 1 << power < num_codebooks]
    return [*doubling, num_codebooks]


def rebuilt(codec: Codec, codes: Tensor, embedding: Tensor | None = None) -> dict[int, Tensor]:
    """codes int64 (frames, K) and the embedding of who speaks, where the codec is told -> for each n of `steps`,
    float32 (1920 frames,) on the CPU from the first n codebooks.

    What the others would have added to the quantised vector is left out.
    """
    return {n: first_layers(codec, codes, n, embedding) for n in steps(codes.shape[1])}


def first_layers(codec: Codec, codes: Tensor, count: int, embedding: Tensor | None = None) -> Tensor:
    """One of `rebuilt`: float32 (1920 frames,) on the CPU from the first `count` codebooks."""
    device = next(codec.module.parameters()).device
    return codec.decode(codes.to(device, torch.int64)[:, :count], embedding).float().cpu()
