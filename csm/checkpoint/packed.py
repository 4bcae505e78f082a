"""Weights that are packed already, as safetensors: `csm convert --weights int4` writes them, and loading packs nothing.

A matrix that is in four bits is two tensors in the place of its `weight`: `weight.packed`, uint8 (out, groups,
group / 2), two numbers to a byte, the first in the lower half, eight added to each; and `weight.scales`, float32 (out,
groups). All others are as they were. The files say so of themselves in their headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import nn

from csm.checkpoint.tensors import Checkpoint, Stored, check_keys, check_shapes, check_types, shapes_of
from csm.config import ModelConfig, TransformerConfig
from csm.errors import InputError
from csm.extras import need
from csm.model import CSM
from csm.model.in_graph import GraphTransformer, graph_transformer, rounded, why_not_in_graphs
from csm.model.int4 import GROUPS, Int4, group_for
from csm.model.onnx_graph import LayerWeights
from csm.model.packed import PackedCSM, packed

PACKED, SCALES = ".packed", ".scales"
KIND: Literal["int4"] = "int4"
TOLD = {"kind": KIND, "groups": ", ".join(map(str, GROUPS)), "order": "lower half first, eight added"}
MATRIX = re.compile(r"(backbone|decoder)\.layers\.\d+\.(attn\.(q|k|v|output)_proj|mlp\.w[123])\.weight")
PROJECTION = "projection.weight"


def is_packed(tensors: Mapping[str, object]) -> bool:
    """Whether the tensors of a language model, by our names, were packed."""
    return any(name.endswith(PACKED) for name in tensors)


def pack(tensors: Checkpoint, dtype: torch.dtype | None = None) -> Checkpoint:
    """A language model's tensors by our names, read in `dtype` or their own, with its matrices packed as they are where
    that is done at loading. The packed ones are in memory. Raises `InputError` for a shape that can't be."""
    made: Checkpoint = {}
    for name, tensor in tensors.items():
        kept = dtype or tensor.dtype
        if name != PROJECTION and not MATRIX.fullmatch(name):
            made[name] = Stored(tensor.shape, kept, tensor.load)
            continue
        if group_for(tensor.shape[1]) is None:
            raise InputError(f"Rows of {tensor.shape[1]} numbers, as {name} has, don't divide into int4's groups.")
        matrix = rounded(tensor.load(kept))
        made |= {name + PACKED: Stored.of(matrix.packed), name + SCALES: Stored.of(matrix.scales)}
    return made


def check_packed(tensors: Checkpoint, config: ModelConfig, told: Mapping[str, str], what: str) -> None:
    """Raise `InputError` for tensors that are packed in a way that is not this one, or are not all there."""
    if told.get("kind") != KIND or told.get("order") != TOLD["order"]:
        raise InputError(
            f"The {what}'s weights are packed as {told.get('kind', 'nobody knows what')!r}, which this version can't "
            f"read: convert the model that it was made of again."
        )
    with torch.device("meta"):
        shapes = shapes_of(CSM(config))
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name != PROJECTION and not MATRIX.fullmatch(name):
            expected[name] = shape
            continue
        out, inputs = shape
        group = group_for(inputs)
        if group is None:
            raise InputError(f"The {what} has rows of {inputs} numbers, which don't divide into int4's groups.")
        found = tensors.get(name + PACKED)
        if found is not None and len(found.shape) == 3 and 2 * found.shape[2] != group:
            raise InputError(
                f"The {what}'s {name} is in groups of {2 * found.shape[2]}, and this version reads groups of {group} "
                "there: convert the model that it was made of again."
            )
        expected |= {name + PACKED: (out, inputs // group, group // 2), name + SCALES: (out, inputs // group)}
    check_keys(set(tensors), set(expected), what)
    check_shapes(tensors, expected, what)
    kinds = {PACKED: torch.uint8, SCALES: torch.float32}
    for name, tensor in tensors.items():
        wanted = next((kind for end, kind in kinds.items() if name.endswith(end)), None)
        if wanted is not None and tensor.dtype != wanted:
            raise InputError(f"The {what}'s {name} holds numbers of the wrong kind: convert the model again.")
    check_types({name: tensor for name, tensor in tensors.items() if not name.endswith((PACKED, SCALES))}, what)


def check_use(name: str, welcome: bool, adapted: bool) -> None:
    """Raise `InputError` where packed weights are of no use, or an adapter is to be merged into them."""
    if adapted:
        raise InputError(f"{name} holds packed weights, into which no adapter can be merged: load what they are of.")
    if not welcome:
        raise InputError(f"{name} holds packed weights, which only speak, and on a CPU: load what they were made of.")


def read_packed(tensors: Checkpoint, config: ModelConfig, dtype: torch.dtype | None = None) -> PackedCSM:
    """The model of tensors that were checked, on a CPU; what is not packed in `dtype`, or as it is stored.

    Raises `InputError` where it can't be computed."""
    need("int4", "Speaking with weights in int4", "onnx", "onnxruntime")
    if reason := why_not_in_graphs(config):
        raise InputError(f"{reason}: load the model that the packed weights were made of.")

    def stack(name: str, shape: TransformerConfig, positions: int, projection: Int4 | None) -> GraphTransformer:
        layers = [_layer(tensors, f"{name}.layers.{layer}", dtype) for layer in range(shape.layers)]
        return graph_transformer(shape, positions, layers, _wide(tensors, f"{name}.norm.scale", dtype), projection)

    with torch.device("meta"):
        model = CSM(config)
    # The graphs take the place of what they compute, and the projection, which is in one, has a size and no numbers.
    projection, filled = _matrix(tensors, PROJECTION), cast(Any, model)
    filled.backbone = stack("backbone", config.backbone, config.max_positions, None)
    filled.decoder = stack("decoder", config.decoder, config.num_codebooks + 1, projection)
    filled.projection.weight = _constant(torch.zeros(1, 1).expand(projection.shape))
    for linear in ("text_embeddings", "audio_embeddings", "codebook0_head"):
        getattr(filled, linear).weight = _constant(_wide(tensors, f"{linear}.weight", dtype))
    filled.audio_head = _constant(_wide(tensors, "audio_head", dtype))
    return packed(model, KIND)


def _layer(tensors: Checkpoint, name: str, dtype: torch.dtype | None) -> LayerWeights:
    def matrix(*names: str) -> Int4:
        return Int4.of_rows(*(_matrix(tensors, f"{name}.{own}.weight") for own in names))

    return LayerWeights(
        qkv=matrix("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        output=_matrix(tensors, f"{name}.attn.output_proj.weight"),
        w13=matrix("mlp.w1", "mlp.w3"),
        w2=_matrix(tensors, f"{name}.mlp.w2.weight"),
        attention_norm=_wide(tensors, f"{name}.sa_norm.scale", dtype),
        mlp_norm=_wide(tensors, f"{name}.mlp_norm.scale", dtype),
    )


def _constant(numbers: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(numbers, requires_grad=False)


def _wide(tensors: Checkpoint, name: str, dtype: torch.dtype | None) -> torch.Tensor:
    return tensors[name].load(dtype or tensors[name].dtype)


def _matrix(tensors: Checkpoint, name: str) -> Int4:
    return Int4(tensors[name + PACKED].load(torch.uint8), tensors[name + SCALES].load(torch.float32))
