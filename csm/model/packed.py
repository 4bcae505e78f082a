"""The network with its matrices packed for a CPU: what one input multiplies is one matrix, and all around is float32.

Beside the way from script to sound: `packed` turns a loaded `CSM` into one that says the same, or nearly so, faster.
One row of input makes a step as slow as its weights are large. FBGEMM's products (arXiv:2101.05615, in torch) read
packed weights as fast as memory gives them, which a plain product in bfloat16 doesn't; oneDNN's come in between.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import ModelConfig
from csm.errors import InputError
from csm.extras import need
from csm.model.in_graph import GraphTransformer, rounded_transformer, why_not_in_graphs
from csm.model.int4 import GROUP
from csm.model.module import CSM
from csm.model.precision import quick_in_bfloat16
from csm.model.recorded import RecordedCSM
from csm.model.transformer import Attention, FeedForward, RMSNorm, rotate

Packing = Literal["float32", "bfloat16", "float16", "int8", "int4"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
IN_KERNELS = ("int8", "float8")  # what fused kernels on CUDA round the matrices to by themselves
EXACT = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BYTES: dict[Packing, float] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 0.5 + 4 / GROUP}
ENGINE = "fbgemm"


class PackedLinear(nn.Module):
    """x (..., in) -> x W^T in float32 (..., out), from a weight (out, in) that no other code can read."""

    def __init__(self, shape: torch.Size, pack: Any) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self._pack = pack
        self._like = torch.empty(0)

    @property
    def weight(self) -> Tensor:
        """No numbers: what the weight's users ask it for is only the device and precision of what goes in and out."""
        return self._like


class WideLinear(PackedLinear):
    """Weights in float32, as they are: `F.linear`, for which many a row costs as much to get ready as to multiply."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape, weight.detach().float().T)

    def forward(self, x: Tensor) -> Tensor:
        product = torch.mm(x.float().reshape(-1, self.in_features), self._pack)
        return product.view(*x.shape[:-1], self.out_features)


class Bfloat16Linear(PackedLinear):
    """Weights and inputs in bfloat16, ordered as oneDNN reads them where it knows this CPU."""

    def __init__(self, weight: Tensor) -> None:
        weight = weight.detach().bfloat16().contiguous()
        self._ordered = torch.backends.mkldnn.is_available() and quick_in_bfloat16("cpu")
        super().__init__(weight.shape, torch.ops.mkldnn._reorder_linear_weight(weight, 1) if self._ordered else weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.bfloat16()
        if self._ordered:
            return torch.ops.mkldnn._linear_pointwise(x, self._pack, None, "none", [], "").float()
        return F.linear(x, self._pack).float()


class HalfLinear(PackedLinear):
    """Weights in float16, which holds bfloat16's numbers of usual size exactly."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape, torch.ops.quantized.linear_prepack_fp16(weight.float(), None))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self._pack)


class Int8Linear(PackedLinear):
    """Weights and inputs in int8, symmetric, each row of either with its own scale; sums are exact.

    A row's result doesn't depend on the rows beside it, so streams that step together don't disturb each other.
    """

    def __init__(self, weight: Tensor) -> None:
        wide = weight.float()
        scale = wide.abs().amax(dim=1).clamp_min_(1e-12) / 127
        rows = torch.zeros(len(wide), dtype=torch.int64)
        exact = torch.quantize_per_channel(wide, scale, rows, 0, torch.qint8)
        super().__init__(weight.shape, torch.ops.quantized.linear_prepack(exact, None))
        # Without VNNI the products are added up in int16: inputs of seven bits can't overflow it.
        self._steps = 127 if torch.cpu._is_vnni_supported() else 63

    def forward(self, x: Tensor) -> Tensor:
        steps, size = self._scaled(x.float())
        return self._product(steps).mul_(size)

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in units of a step, and the step of each row."""
        size = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True).clamp_min_(1e-12) / self._steps
        return x / size, size

    def _product(self, steps: Tensor) -> Tensor:
        """The exact product with `steps`, each rounded to a whole number."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(steps, 1.0, 128, self._pack)


class FineInt8Linear(Int8Linear):
    """The same with inputs in two digits: what rounding leaves is multiplied, too, and the weights are read once.

    For inputs of wide range, the products of two in a feed-forward's middle: their small numbers would round to zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        steps, size = self._scaled(x.float())
        finer = 2 * self._steps
        coarse, fine = self._product(torch.cat([steps, (steps - steps.round()) * finer])).chunk(2)
        return torch.add(coarse, fine, alpha=1 / finer).mul_(size)


class WithinLinear(PackedLinear):
    """In the place of a product that is computed where its result goes: nothing but the input in float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape, None)

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class PackedAttention(Attention):
    """Attention with queries, keys and values in one product."""

    def __init__(self, source: Attention, first: PackedLinear, last: PackedLinear) -> None:
        nn.Module.__init__(self)
        self.heads, self.kv_heads, self.head_dim = source.heads, source.kv_heads, source.head_dim
        self.qkv_proj, self.output_proj = first, last  # type: ignore[assignment]

    def queries_keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned, values = self._by_head(self.qkv_proj(x)).split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        queries, keys = rotate(turned, cos, sin).transpose(1, 2).split((self.heads, self.kv_heads), dim=1)
        return queries, keys, values.transpose(1, 2)


class PackedFeedForward(nn.Module):
    """SwiGLU with its first two products in one: w2(silu(w1 x) * w3 x)."""

    def __init__(self, first: PackedLinear, second: PackedLinear) -> None:
        super().__init__()
        self.w13, self.w2 = first, second

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate).mul_(up))


class PackedNorm(nn.Module):
    """RMSNorm of float32 in one call."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.scale = nn.Parameter(norm.scale.detach().float(), requires_grad=False)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.scale.shape, self.scale, self.eps)


class PackedHeads(nn.Module):
    """The K-1 heads of the depth decoder: `hidden @ heads[k]`, as with the parameter that they take the place of."""

    def __init__(self, heads: list[PackedLinear]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def __getitem__(self, index: int) -> _Head:
        return _Head(self.heads[index])


class _Head:
    def __init__(self, linear: nn.Module) -> None:
        self._linear = linear

    def __rmatmul__(self, hidden: Tensor) -> Tensor:
        return self._linear(hidden)


class PackedCSM(RecordedCSM):
    """A `CSM` for inference on a CPU. Embeddings stay as they were loaded; everything computed is float32."""

    packing: Packing

    def __init__(self, config: ModelConfig, packing: Packing) -> None:
        super().__init__(config)
        self.packing = packing
        self.in_graphs = packing == "int4"
        self.recorded = not self.in_graphs

    def depth_logits(self, state: Tensor, codes: Tensor) -> Tensor:
        hidden = self.decoder(self.depth_inputs(state, codes[:, :-1]))[:, 1:]
        heads: Any = self.audio_head
        return torch.stack([hidden[:, k] @ heads[k] for k in range(hidden.shape[1])], dim=1)


def check_packing(packing: str, device: torch.device) -> None:
    """Raise `InputError` where weights can't be packed so."""
    if packing not in PACKINGS:
        raise InputError(f"Weights can't be {packing!r}: choose {', '.join(PACKINGS[:-1])} or {PACKINGS[-1]}.")
    if packing == "int4" and device.type == "cpu":
        need("int4", "Speaking with weights in int4", "onnx", "onnxruntime")
        return
    if device.type != "cpu" or (packing not in EXACT and ENGINE not in torch.backends.quantized.supported_engines):
        raise InputError(f"Weights in {packing} are for x86 CPUs: choose bfloat16 or float32 here.")


@torch.no_grad()
def packed(model: CSM, packing: Packing, keep: bool = False) -> PackedCSM:
    """`model`, on a CPU, with its matrices packed; embeddings are shared with it.

    Unless it is to `keep` them, `model` loses each matrix as soon as it is packed, so that there are never two copies
    of the whole. Where int4 is not to be had, one warning says so, and the matrices are in int8. Raises `InputError`
    where weights can't be packed so.
    """
    check_packing(packing, model.projection.weight.device)
    if packing == "int4" and (reason := why_not_in_graphs(model.config)):
        packing = "int8" if ENGINE in torch.backends.quantized.supported_engines else "bfloat16"
        warnings.warn(f"{reason}: the weights are in {packing} instead, which are read more slowly.", stacklevel=3)
    in_graphs = packing == "int4"

    kinds: dict[Packing, type[Any]] = {
        "float32": WideLinear,
        "bfloat16": Bfloat16Linear,
        "float16": HalfLinear,
        "int8": Int8Linear,
        "int4": Int8Linear,  # heads: 3 % of what a frame of CSM-1B reads
    }

    def pack(weight: Tensor, wide: bool = False) -> PackedLinear:
        return FineInt8Linear(weight) if wide and packing == "int8" else kinds[packing](weight)

    def packed_form(source: nn.Module) -> nn.Module | None:
        if isinstance(source, Attention):
            first = torch.cat([source.q_proj.weight, source.k_proj.weight, source.v_proj.weight])
            return PackedAttention(source, pack(first), pack(source.output_proj.weight))
        if isinstance(source, FeedForward):
            first = torch.cat([source.w1.weight, source.w3.weight])
            return PackedFeedForward(pack(first), pack(source.w2.weight, wide=True))
        if isinstance(source, nn.Linear):
            within = in_graphs and source is model.projection
            return WithinLinear(source.weight) if within else pack(source.weight)
        return PackedNorm(source) if isinstance(source, RMSNorm) else None

    with torch.device("meta"):
        made = PackedCSM(model.config, packing)
    before = torch.backends.quantized.engine
    if packing not in EXACT:
        torch.backends.quantized.engine = ENGINE  # decides how weights are packed, and nothing later
    try:
        if in_graphs:
            graphs, stacks = cast(Any, made), cast(Any, model)  # whose graphs may be there already
            if isinstance(stacks.backbone, GraphTransformer):
                graphs.backbone, graphs.decoder = stacks.backbone, stacks.decoder
            else:
                graphs.backbone = rounded_transformer(stacks.backbone, keep)
                graphs.decoder = rounded_transformer(stacks.decoder, keep, model.projection.weight)
        for name, source in list(model.named_modules()):
            parent, _, own = name.rpartition(".")
            if isinstance(model.get_submodule(parent), Attention | FeedForward):
                continue
            if in_graphs and name.split(".")[0] in ("backbone", "decoder"):
                continue
            if (form := packed_form(source)) is not None:
                setattr(made.get_submodule(parent), own, form)
                for linear in source.modules():
                    if isinstance(linear, nn.Linear) and not keep:
                        del linear.weight
            elif isinstance(source, nn.Embedding):
                made.get_submodule(name).weight = source.weight
        heads = PackedHeads([pack(head.T) for head in model.audio_head.detach()])
        del made.audio_head
        made.audio_head = heads  # type: ignore[assignment]  # indexed and multiplied by, as the parameter is
        if not keep:
            del model.audio_head
    finally:
        torch.backends.quantized.engine = before
    return made


def usual_packing(stored: torch.dtype | None) -> Packing:
    """What loses nothing of weights that were `stored` so, and is read fastest: float16 as it is, else float32."""
    halves = stored == torch.float16 and ENGINE in torch.backends.quantized.supported_engines
    return "float16" if halves else "float32"


def reading_precision(weights: str | None, dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """How to read a published model that is to have such `weights` (by name), else `dtype`, else what suits `device`.

    Raises `InputError` for weights that are unknown or not for this device.
    """
    if weights and weights not in EXACT and not rounded_by_kernels(weights, device):
        check_packing(weights, device)
    usual = torch.float32 if device.type == "cpu" and not weights else torch.bfloat16
    return EXACT.get(weights or "") or dtype or usual


def rounded_by_kernels(weights: str | None, device: torch.device) -> bool:
    """Whether such weights (by name) are the business of the kernels on `device`, and not of the model."""
    return device.type == "cuda" and weights in IN_KERNELS


def in_precision(model: CSM, weights: str | None, keep: bool = False) -> CSM:
    """`model` with its matrices in `weights`, by name, packed on a CPU; None leaves it alone. A model to `keep` is not
    changed. Raises `InputError` for one that is packed otherwise."""
    if not weights:
        return model
    if isinstance(model, PackedCSM):
        if model.packing != weights:
            raise InputError(f"The weights are in {model.packing}: for {weights}, load the model they were made of.")
        return model
    if weights in EXACT and model.projection.weight.device.type != "cpu":
        return (copy.deepcopy(model) if keep else model).to(EXACT[weights])
    return packed(model, cast(Packing, weights), keep)
