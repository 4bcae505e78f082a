"""A transformer whose steps are one ONNX graph each, which ONNX Runtime computes with matrices in four bits.

Beside the way from script to sound: a `Transformer` to whoever calls it. The KV cache is the caller's, read and
written where it lies.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from csm.config import ModelConfig, TransformerConfig
from csm.model.int4 import Int4, group_for, rounded_to_int4
from csm.model.onnx_graph import LayerWeights, step_graph
from csm.model.transformer import Cache, KVCache, Layer, SideBySide, Transformer, rope_frequencies

PROVIDERS = ["CPUExecutionProvider"]
SMALL = 512  # width up to which a step's products are too short for a second thread
X86 = ("AVX2", "AVX512")


def why_not_in_graphs(config: ModelConfig) -> str | None:
    """Why a model's steps can't be graphs in int4 here, as the beginning of a sentence; None where they can."""
    if torch.backends.cpu.get_cpu_capability() not in X86:
        return "This processor is none with AVX2 or AVX-512, for which products in int4 are"
    for stack in (config.backbone, config.decoder):
        for inputs in (stack.dim, stack.heads * stack.head_dim, stack.mlp_dim):
            if group_for(inputs) is None:
                return f"Rows of {inputs} numbers don't divide into int4's groups"
    return None


def session(model: bytes, weights: dict[str, np.ndarray], threads: int) -> Any:
    """ONNX Runtime's session of a serialised model with its weights. Its threads sleep between two runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model, options, providers=PROVIDERS)


class GraphTransformer(nn.Module):
    """Embeddings (B, S, width) -> hidden states (B, S, dim) after the final norm, float32, behind a `KVCache`.

    With `SideBySide`, S is 1, and the rows are computed one after the other."""

    def __init__(self, config: TransformerConfig, session: Any) -> None:
        super().__init__()
        self.config, self._session = config, session
        self._bound: weakref.WeakKeyDictionary[KVCache, Any] = weakref.WeakKeyDictionary()

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x.float().contiguous()
        if isinstance(cache, SideBySide):
            return torch.cat([self._step(row, own) for row, own in zip(x.split(1), cache.caches)])
        if cache is None:
            cache = KVCache(self.config, x.shape[1], x.shape[0], x)
        assert isinstance(cache, KVCache)
        return self._step(x, cache)

    def _step(self, x: Tensor, cache: KVCache) -> Tensor:
        batch, count, _ = x.shape
        total = cache.length + count
        if total > cache.positions:
            raise IndexError(f"The KV cache holds {cache.positions} positions; {total} were asked for.")
        binding = self._bound.get(cache)
        if binding is None:
            binding = self._bound[cache] = self._binding(cache)
        hidden = torch.empty(batch, count, self.config.dim)
        last, reach = np.full(batch, total - 1, dtype=np.int32), np.array([total], dtype=np.int32)
        binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.data_ptr())
        binding.bind_cpu_input("last", last)
        binding.bind_cpu_input("total", reach)
        binding.bind_output("hidden", "cpu", 0, np.float32, hidden.shape, hidden.data_ptr())
        self._session.run_with_iobinding(binding)
        cache.length = total
        return hidden

    def _binding(self, cache: KVCache) -> Any:
        binding = self._session.io_binding()
        for layer in range(self.config.layers):
            for name, memory in (("keys", cache.keys[layer]), ("values", cache.values[layer])):
                where = "cpu", 0, np.float32, memory.shape, memory.data_ptr()
                binding.bind_input(f"{name}.{layer}", *where)
                binding.bind_output(f"{name}_out.{layer}", *where)
        return binding


@torch.no_grad()
def graph_transformer(
    config: TransformerConfig,
    positions: int,
    layers: list[LayerWeights],
    norm: Tensor,
    projection: Int4 | None = None,
) -> GraphTransformer:
    """The transformer of these matrices and final norm (dim,), for so many positions; with a `projection` (dim, width)
    what it makes of projected inputs."""
    frequencies = rope_frequencies(config.head_dim, config.rope)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    model, weights = step_graph(config, layers, norm, (angles.cos(), angles.sin()), projection)
    return GraphTransformer(config, session(model, weights, 1 if config.dim <= SMALL else torch.get_num_threads()))


def rounded(*weights: Tensor) -> Int4:
    """Weights (out, in) of one input as one matrix, in the usual groups, which divide its rows."""
    whole = torch.cat(weights) if len(weights) > 1 else weights[0]
    group = group_for(whole.shape[1])
    assert group is not None, "asked for before"
    return rounded_to_int4(whole, group)


@torch.no_grad()
def rounded_transformer(source: Transformer, keep: bool, projection: Tensor | None = None) -> GraphTransformer:
    """`source`, or with `projection` (dim, width) what it makes of projected inputs, with its matrices in four bits.

    Unless it is to `keep` them, `source` loses its matrices."""
    layers = []
    for layer in cast(list[Layer], source.layers):
        attn, mlp = layer.attn, layer.mlp
        made = LayerWeights(
            qkv=rounded(attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight),
            output=rounded(attn.output_proj.weight),
            w13=rounded(mlp.w1.weight, mlp.w3.weight),
            w2=rounded(mlp.w2.weight),
            attention_norm=layer.sa_norm.scale,
            mlp_norm=layer.mlp_norm.scale,
        )
        layers.append(made)
        if not keep:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    del module.weight
    before = None if projection is None else rounded(projection)
    return graph_transformer(source.config, source.rotary.positions, layers, source.norm.scale, before)
