"""Give a trained model frames that carry their speaker's slot (`ModelConfig.slots_in_frames`), to be trained on.

In plain rows a frame learns whose it is from the text before its turn, in two steps: it has to take up the slot's
number, and then to look for other frames that did. A small model does neither by itself, and has one voice for all.
Trained weights cannot learn it quickly either: the numbers' embeddings are nearly the same vector, a twentieth of what
else a row holds where voices are looked for. So the numbers get vectors of their own, at right angles to each other, in
directions that nothing else reads, and the heads that listen to earlier turns are begun with comparing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from csm.engine.frames import RowFormat
from csm.errors import InputError
from csm.model import CSM
from csm.model.transformer import Layer
from csm.text import Tokenizer
from csm.training.codes import SLOTS, Batch

LENGTH = 6.0  # of a slot's vector: about that of a frame's own embedding
ADVANTAGE = 4.0  # in attention logits, of frames of the same slot
LISTENING = {2: (3,), 3: (0, 1), 4: (2, 3)}  # layer: heads that attend to sound of earlier turns in the shipped nano


@torch.no_grad()
def tell_slots(model: CSM, tokenizer: Tokenizer, batch: Batch, heads: Mapping[int, Sequence[int]] = LISTENING) -> CSM:
    """The same weights in a model whose frames carry slots. `batch` shows how large rows are in each of its layers.

    Raises `InputError` for a model that is told already, or has no such heads.
    """
    if model.config.slots_in_frames:
        raise InputError("The frames of this model carry slots already: leave --tell-slots out.")
    if max(heads) >= model.config.backbone.layers or max(map(max, heads.values())) >= model.config.backbone.heads:
        raise InputError("Which heads of this model listen to other turns is not known: --tell-slots is for nano.")
    norms = _norms(model, batch)
    told = CSM(replace(model.config, slots_in_frames=True))
    written = RowFormat.of(told.config, tokenizer)
    told.load_state_dict(model.state_dict())
    dim = model.config.backbone.dim
    numbers = [written.slot_id(slot) for slot in range(SLOTS)]
    directions = torch.linalg.qr(torch.randn(dim, SLOTS, generator=torch.Generator().manual_seed(1)))[0]
    for embeddings in (told.text_embeddings.weight, told.audio_embeddings.weight):
        embeddings -= embeddings @ directions @ directions.T
    told.text_embeddings.weight[numbers] = LENGTH * directions.T
    for index, module in enumerate(told.backbone.layers):
        layer = cast(Layer, module)
        for norm, matrices in (
            (layer.sa_norm.scale, (layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj)),
            (layer.mlp_norm.scale, (layer.mlp.w1, layer.mlp.w3)),
        ):
            for matrix in matrices:
                _forget(matrix.weight, norm, directions)
        for matrix in (layer.attn.output_proj, layer.mlp.w2):
            matrix.weight -= directions @ directions.T @ matrix.weight
        attention, width = layer.attn, layer.attn.head_dim
        share = LENGTH / norms[index] * dim**0.5  # of a slot's direction in the layer's normed input
        gain = (ADVANTAGE * width**0.5) ** 0.5 / share
        read = gain * (directions / layer.sa_norm.scale[:, None]).T  # (slots, dim)
        slow = width - 2 * SLOTS + 2 * torch.arange(SLOTS)  # the pairs that hardly turn with the position
        chosen = heads.get(index, ())
        group = attention.heads // attention.kv_heads
        for head in chosen:
            attention.q_proj.weight[head * width + slow] += read
        for shared in {head // group for head in chosen}:
            attention.k_proj.weight[shared * width + slow] += read
    _forget(told.codebook0_head.weight, told.backbone.norm.scale, directions)
    _forget(told.projection.weight, told.backbone.norm.scale, directions)
    return told


def _norms(model: CSM, batch: Batch) -> list[float]:
    """The mean norm of frames at each layer's input."""
    x, found = model.embed_rows(batch.ids, batch.mask), []
    cos, sin = model.backbone.rotary(torch.arange(x.shape[1]))
    for index, layer in enumerate(model.backbone.layers):
        found.append(float(x[batch.mask[..., 0]].norm(dim=-1).square().add(LENGTH**2).sqrt().mean()))
        x = layer(x, cos, sin, index, None)
    return found


def _forget(weight: Tensor, scale: Tensor, directions: Tensor) -> None:
    """Make a product of normed rows blind to `directions` (dim, slots)."""
    seen = weight * scale
    weight.copy_((seen - seen @ directions @ directions.T) / scale)
