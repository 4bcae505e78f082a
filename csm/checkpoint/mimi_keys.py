"""moshi's names for Mimi's tensors <-> transformers'. moshi's are ours, because its module is what runs here.

moshi keeps Q, K and V in one matrix, transformers in three with the rows of Q and K in another order. The published
file has two names that today's moshi has changed; both are read.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor

from csm.checkpoint.layouts import halves_from_pairs, pairs_from_halves
from csm.checkpoint.tensors import Checkpoint, Stored, check_keys, check_shapes, check_types
from csm.config import MimiConfig

# In this order, on moshi's names; each line's right side names nothing that another line changes.
RENAMED = (
    (r"^(down|up)sample\.(?:conv|convtr)\.(?:conv|convtr)\.(?:conv|convtr)\.", r"\1sample.conv."),
    (r"\.(?:conv\.conv|convtr\.convtr)\.", ".conv."),
    (r"^(en|de)coder\.model\.", r"\1coder.layers."),
    (r"_transformer\.transformer\.", "_transformer."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"\.self_attn\.out_projs\.0\.", ".self_attn.o_proj."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"^quantizer\.rvq_first\.(?:vq\.)?", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rvq_rest\.(?:vq\.)?", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\._codebook\._initialized$", ".codebook.initialized"),
    (r"\._codebook\.cluster_usage$", ".codebook.cluster_usage"),
    (r"\._codebook\.embedding_sum$", ".codebook.embed_sum"),
)
JOINT = ".self_attn.in_projs.0.weight"
SPLIT = tuple(f".self_attn.{letter}_proj.weight" for letter in "qkv")
FLAG = "initialized"  # says whether k-means has run; a number or a truth value
OLDER = (
    (r"\.self_attn\.in_proj(?:_|\.)weight$", JOINT),
    (r"\.self_attn\.out_proj\.weight$", ".self_attn.out_projs.0.weight"),
    (r"\._codebook\.inited$", "._codebook._initialized"),
    (r"\._codebook\.cluster_size$", "._codebook.cluster_usage"),
    (r"\._codebook\.embed_(?:sum|avg)$", "._codebook.embedding_sum"),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def from_moshi(tensors: Checkpoint, shapes: dict[str, tuple[int, ...]], what: str) -> Checkpoint:
    """A checkpoint in moshi's names, today's or the published file's -> today's. Raises `InputError`."""
    made = {_renamed(name, OLDER): tensor for name, tensor in tensors.items()}
    check_keys(set(made), set(shapes), what)
    check_types({name: tensor for name, tensor in made.items() if not name.endswith(FLAG)}, what)
    check_shapes(made, shapes, what)
    return made


def from_transformers(
    tensors: Checkpoint, config: MimiConfig, shapes: dict[str, tuple[int, ...]], what: str
) -> Checkpoint:
    """transformers' `MimiModel` -> moshi's names. `shapes` are those that moshi's module needs. Raises `InputError`."""
    width = config.dim // config.heads
    parts: dict[str, list[str]] = {}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(JOINT):
            stem = _renamed(name.removesuffix(JOINT) + ".", RENAMED).removesuffix(".")
            parts[name] = [stem + ending for ending in SPLIT]
            wanted |= dict.fromkeys(parts[name], (shape[0] // 3, *shape[1:]))
        else:
            parts[name] = [_renamed(name, RENAMED)]
            wanted[parts[name][0]] = shape
    check_keys(set(tensors), set(wanted), what)
    check_types({name: tensor for name, tensor in tensors.items() if not name.endswith(FLAG)}, what)
    check_shapes(tensors, wanted, what)
    made: Checkpoint = {}
    for name, shape in shapes.items():
        found = [tensors[part] for part in parts[name]]
        made[name] = found[0] if len(found) == 1 else Stored(shape, found[0].dtype, partial(_join, found, width))
    return made


def to_transformers(tensors: Checkpoint, config: MimiConfig) -> Checkpoint:
    """moshi's names -> transformers'."""
    width = config.dim // config.heads
    made: Checkpoint = {}
    for name, tensor in tensors.items():
        if not name.endswith(JOINT):
            made[_renamed(name, RENAMED)] = tensor
            continue
        stem = _renamed(name.removesuffix(JOINT) + ".", RENAMED).removesuffix(".")
        shape = (tensor.shape[0] // 3, *tensor.shape[1:])
        for number, ending in enumerate(SPLIT):
            made[stem + ending] = Stored(shape, tensor.dtype, partial(_take, tensor, number, width))
    return made


def _join(parts: list[Stored], width: int, dtype: torch.dtype) -> Tensor:
    q, k, v = (part.load(dtype) for part in parts)
    return torch.cat([pairs_from_halves(q, width), pairs_from_halves(k, width), v])


def _take(joint: Stored, number: int, width: int, dtype: torch.dtype) -> Tensor:
    part = joint.load(dtype).chunk(3)[number]
    return part if number == 2 else halves_from_pairs(part, width)
