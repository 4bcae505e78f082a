"""The original layout's names <-> the transformers layout's, for the language model. Mimi's are in `mimi_keys.py`.

Apart from names the two differ in the order of the rows of Q and K (rotary pairs are neighbours in the original,
halves in transformers), and in a second copy of the audio embeddings that transformers ties to the first.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from csm.checkpoint.tensors import PIECE_BYTES, Checkpoint, Stored, check_keys, check_shapes, check_types
from csm.config import ModelConfig
from csm.errors import InputError

CODEC = "codec_model."
FIRST_COPY = "backbone_model.embed_tokens.embed_audio_tokens.weight"
TIED_COPY = "depth_decoder.model.embed_tokens.weight"

WHOLE = {
    "text_embeddings.weight": "embed_text_tokens.weight",
    "audio_embeddings.weight": FIRST_COPY,
    "projection.weight": "depth_decoder.model.inputs_embeds_projector.weight",
    "codebook0_head.weight": "lm_head.weight",
    "audio_head": "depth_decoder.codebooks_head.weight",
    "backbone.norm.scale": "backbone_model.norm.weight",
    "decoder.norm.scale": "depth_decoder.model.norm.weight",
}
STACKS = {"backbone": "backbone_model", "decoder": "depth_decoder.model"}
IN_LAYER = {
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
    "sa_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
}
OURS = {theirs: ours for ours, theirs in WHOLE.items()}
OURS_IN_LAYER = {theirs: ours for ours, theirs in IN_LAYER.items()}
LAYER = re.compile(r"(backbone|decoder)\.layers\.(\d+)\.(.+)")


def transformers_name(name: str) -> str:
    """What transformers calls one of our (the original's) tensors."""
    if name in WHOLE:
        return WHOLE[name]
    found = LAYER.fullmatch(name)
    assert found is not None, name
    stack, number, rest = found.groups()
    return f"{STACKS[stack]}.layers.{number}.{IN_LAYER[rest]}"


def our_name(name: str) -> str:
    """What we (and the original) call a tensor of either layout; unknown names stay as they are."""
    for stack, theirs in STACKS.items():
        if name.startswith(f"{theirs}.layers."):
            _, number, rest = name.removeprefix(f"{theirs}.").split(".", 2)
            return f"{stack}.layers.{number}.{OURS_IN_LAYER.get(rest, rest)}"
    return OURS.get(name, name)


def pairs_from_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of Q or K, transformers' order -> the original's: first and second half of each head interleaved."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of Q or K, the original's order -> transformers': the inverse of `pairs_from_halves`."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _rotary_width(name: str, config: ModelConfig) -> int | None:
    """The head width of a Q or K matrix by one of our names; None for every other tensor."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    return (config.backbone if name.startswith("backbone") else config.decoder).head_dim


def from_transformers(
    tensors: Checkpoint, config: ModelConfig, shapes: dict[str, tuple[int, ...]], what: str
) -> Checkpoint:
    """A transformers checkpoint without its codec -> our names. `shapes` are those our model needs, by our names.

    Either copy of the audio embeddings may be missing; two must agree. Raises `InputError` naming an odd key.
    """
    tensors = dict(tensors)
    if FIRST_COPY not in tensors and TIED_COPY in tensors:
        tensors[FIRST_COPY] = tensors[TIED_COPY]
    tied = tensors.pop(TIED_COPY, None)
    theirs = {transformers_name(name): name for name in shapes}
    check_keys(set(tensors), set(theirs), what)
    check_types(tensors, what)
    check_shapes(tensors, {key: shapes[name] for key, name in theirs.items()}, what)
    if tied is not None and tied is not tensors[FIRST_COPY] and not _same(tied, tensors[FIRST_COPY]):
        raise InputError(
            f"In the {what} the two copies of the audio embeddings, {FIRST_COPY} and {TIED_COPY}, differ: CSM has one."
        )
    return {name: _reordered(tensors[key], _rotary_width(name, config), True) for key, name in theirs.items()}


def to_transformers(tensors: Checkpoint, config: ModelConfig) -> Checkpoint:
    """Our names -> a transformers checkpoint without its codec, tied copy included, as it was published."""
    made = {
        transformers_name(name): _reordered(tensor, _rotary_width(name, config), False)
        for name, tensor in tensors.items()
    }
    return made | {TIED_COPY: made[FIRST_COPY]}


def _reordered(tensor: Stored, head_dim: int | None, to_ours: bool) -> Stored:
    if head_dim is None:
        return tensor
    change = pairs_from_halves if to_ours else halves_from_pairs
    return tensor.then(lambda weight: change(weight, head_dim))


def _same(first: Stored, second: Stored) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    a, b = first.load(first.dtype), second.load(second.dtype)
    step = max(1, PIECE_BYTES // max(1, a[:1].nbytes))
    return all(torch.equal(x, y) for x, y in zip(a.split(step), b.split(step)))
