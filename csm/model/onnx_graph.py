"""One step of a transformer as an ONNX graph, with its matrices in four bits: what ONNX Runtime is given.

Norms, attention and all that lies between the products is float32. Products take their input in eight bits, a scale to
each group (`accuracy_level` 4). Attention reads and writes the caller's own KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from csm.config import TransformerConfig
from csm.model.int4 import Int4

MICROSOFT = "com.microsoft"
VERSIONS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
IN_EIGHT_BITS = 4  # MatMulNBits' accuracy_level


@dataclass(frozen=True)
class LayerWeights:
    """A layer's matrices, `qkv` (queries, keys and values) and `w13` (both that the input multiplies) in one, and its
    norms (dim,)."""

    qkv: Int4
    output: Int4
    w13: Int4
    w2: Int4
    attention_norm: Tensor
    mlp_norm: Tensor


@dataclass
class GraphBuilder:
    """Nodes and weights so far. Weights are named in the graph and handed over beside it, so none is copied twice."""

    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """One operation -> the name of its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def weight(self, name: str, value: Tensor) -> str:
        self.weights[name] = value.detach().contiguous().numpy()
        return name

    def product(self, x: str, matrix: Int4, name: str) -> str:
        """x (..., in) -> (..., out)."""
        out, inputs = matrix.shape
        given = [x, self.weight(f"{name}.packed", matrix.packed), self.weight(f"{name}.scales", matrix.scales)]
        sizes = {"K": inputs, "N": out, "bits": 4, "block_size": matrix.group, "accuracy_level": IN_EIGHT_BITS}
        return self.node("MatMulNBits", given, [name], MICROSOFT, **sizes)

    def model(self, inputs: list[Any], outputs: list[Any]) -> bytes:
        from onnx import TensorProto, helper

        declared = []
        for name, value in self.weights.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = TensorProto(name=name, data_type=kind, dims=value.shape, data_location=TensorProto.EXTERNAL)
            place = tensor.external_data.add()
            place.key, place.value = "location", "given"
            declared.append(tensor)
        graph = helper.make_graph(self.nodes, "step", inputs, outputs, initializer=declared)
        versions = [helper.make_opsetid(domain, version) for domain, version in VERSIONS.items()]
        made = helper.make_model(graph, opset_imports=versions, producer_name="csm")
        made.ir_version = IR_VERSION
        return made.SerializeToString()


def step_graph(
    config: TransformerConfig,
    layers: list[LayerWeights],
    norm: Tensor,
    angles: tuple[Tensor, Tensor],
    projection: Int4 | None = None,
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A transformer as a model and its weights by name. `angles` are cosine and sine, (positions, head_dim / 2) each;
    with a `projection` inputs are that wide and are projected first.

    Inputs: `x` float32 (B, S, width), `last` int32 (B,), the newest position of each row, `total` int32 (1,), how many
    there are, and of every layer `keys.n` and `values.n`, float32 (B, kv_heads, positions, head_dim). Outputs:
    `hidden` (B, S, dim), and `keys_out.n` and `values_out.n`, to be bound to the inputs' memory.
    """
    from onnx import TensorProto, helper

    build = GraphBuilder()
    cos, sin = build.weight("cos", angles[0]), build.weight("sin", angles[1])
    x = build.product("x", projection, "projected") if projection else "x"
    width = projection.shape[1] if projection else config.dim
    cache: list[str | int | None] = ["B", config.kv_heads, "positions", config.head_dim]
    number = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", number, ["B", "S", width]),
        helper.make_tensor_value_info("last", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
    ]
    outputs = [helper.make_tensor_value_info("hidden", number, ["B", "S", config.dim])]
    epsilon = config.norm_eps

    def norm_of(name: str, scale: Tensor, x: str, more: str | None) -> tuple[str, str]:
        """The norm of x, or of x and what is added to it -> it and the sum."""
        scale_name = build.weight(f"{name}.scale", scale.float())
        if more is None:
            plain: dict[str, Any] = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
            return build.node("SimplifiedLayerNormalization", [x, scale_name], [name], **plain), x
        given, made = [x, more, scale_name], [name, "", "", f"{name}.sum"]
        build.node("SkipSimplifiedLayerNormalization", given, made, MICROSOFT, epsilon=epsilon)
        return name, f"{name}.sum"

    more: str | None = None
    for index, layer in enumerate(layers):
        normed, x = norm_of(f"attention_norm.{index}", layer.attention_norm, x, more)
        qkv = build.product(normed, layer.qkv, f"qkv.{index}")
        past = [f"keys.{index}", f"values.{index}"]
        present = [f"keys_out.{index}", f"values_out.{index}"]
        attended = build.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "last", "total", cos, sin],
            [f"attended.{index}", *present],
            MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            rotary_interleaved=1,
        )
        inputs += [helper.make_tensor_value_info(name, number, cache) for name in past]
        outputs += [helper.make_tensor_value_info(name, number, cache) for name in present]
        more = build.product(attended, layer.output, f"output.{index}")
        normed, x = norm_of(f"mlp_norm.{index}", layer.mlp_norm, x, more)
        both = build.product(normed, layer.w13, f"w13.{index}")
        gate, up = f"gate.{index}", f"up.{index}"
        build.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        opened = build.node("QuickGelu", [gate], [f"opened.{index}"], MICROSOFT, alpha=1.0)  # SiLU
        inner = build.node("Mul", [opened, up], [f"inner.{index}"])
        more = build.product(inner, layer.w2, f"w2.{index}")
    scale = build.weight("norm.scale", norm.float())
    build.node("SkipSimplifiedLayerNormalization", [x, more or "", scale], ["hidden"], MICROSOFT, epsilon=epsilon)
    return build.model(inputs, outputs), build.weights
