"""How much memory a training step takes, computed on the meta device before anything is allocated (`--plan`).

Each part of the model runs on tensors without data, and what autograd keeps for the backward pass is added up. With
amortisation the depth decoder's part shrinks with the share of the frames that it learns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from csm.config import ModelConfig
from csm.model import CSM, Transformer
from csm.training.lm import LMSettings, check_positions, guided_heads, optimisers
from csm.training.muon import Muon


@dataclass(frozen=True)
class Plan:
    """Bytes on each process. Activations are what the forward pass keeps for the backward pass, the bfloat16 copies
    of the weights among them. What else comes and goes: `logits_working` while the last loss is computed,
    `step_working` while rows are embedded or weights updated."""

    weights: int
    gradients: int
    optimiser: int
    backbone_activations: int
    code0_logits: int
    depth_activations: int
    depth_logits: int
    logits_working: int
    step_working: int

    @property
    def total(self) -> int:
        """The peak: either all activations before the backward pass, or all gradients after it."""
        activations = self.backbone_activations + self.code0_logits + self.depth_activations + self.depth_logits
        before, after = activations + self.logits_working, self.gradients + self.step_working
        return self.weights + self.optimiser + max(before, after)


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output, and a number for each query."""

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        context.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


class _Autocast(TorchFunctionMode):
    """What `torch.autocast` does to matrix products, for the meta device, which it doesn't know."""

    def __init__(self, bfloat16: bool) -> None:
        super().__init__()
        self.bfloat16 = bfloat16

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        if self.bfloat16 and function in (F.linear, torch.einsum):
            args = [arg.bfloat16() if isinstance(arg, Tensor) else arg for arg in args]
        return function(*args, **(kwargs or {}))


def kept_bytes(work: Callable[[], Tensor], model: CSM, bfloat16: bool) -> int:
    """Bytes that autograd keeps of `work` on meta tensors, parameters not counted again."""
    own = [parameter.untyped_storage() for parameter in model.parameters()]  # alive, so that their ids stay theirs
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    with _Autocast(bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in kept.values()) - sum(s.nbytes() for s in own if id(s) in kept)


def plan(
    config: ModelConfig,
    settings: LMSettings,
    frames: int | None = None,
    processes: int = 1,
    prepare: Callable[[CSM], CSM] = lambda model: model,
) -> Plan:
    """The memory of one training step with the longest conversations.

    `prepare` may freeze parts of the model or add adapters, as before training. `frames` is how many rows of a batch
    are audio (default: all of them, the most there can be). FSDP2 spreads weights, gradients and the optimiser's state
    over `processes`; activations are each process's own. Raises `InputError` for more positions than the model has.
    """
    check_positions(config, settings)
    with torch.device("meta"):
        model = prepare(CSM(config))
    bfloat16 = settings.bfloat16()
    length, k, vocab = settings.positions, config.num_codebooks, config.audio_vocab_size
    batch = max(1, settings.batch_positions // length)
    frames = min(frames or batch * length, batch * (length - 1))
    learned = max(1, round(settings.depth_share * frames))

    def inner(*shape: int) -> Tensor:
        """An activation of float32: no leaf, or autograd would keep it for its own gradient."""
        return torch.empty(shape, device="meta", requires_grad=True) * 1

    def codes(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.int64)

    def kept(work: Callable[[], Tensor]) -> int:
        return kept_bytes(work, model, bfloat16)

    def layers(part: Transformer, rows: int, positions: int) -> int:
        x = inner(rows, positions, part.config.dim)
        cos, sin = part.rotary(torch.arange(positions, device="meta"))
        one = kept(lambda: part.layers[0](x, cos, sin, 0, None))
        return len(part.layers) * x.nbytes + one if settings.checkpointing else len(part.layers) * one

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float().flatten(0, -2), codes(logits.shape[:-1].numel()))

    dim, narrow = config.backbone.dim, config.decoder.dim
    backbone = layers(model.backbone, batch, length) + kept(lambda: model.backbone.norm(inner(batch, length, dim)))
    for guided in guided_heads(config, settings).values():
        backbone += 2 * 4 * batch * len(guided.heads) * length**2  # two maps of scores, float32
    depth = layers(model.decoder, learned, k) + kept(
        lambda: model.depth_inputs(inner(learned, dim), codes(learned, k - 1))
    )
    depth += kept(lambda: model.decoder.norm(inner(learned, k, narrow)))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = [parameter.nbytes for parameter in model.parameters() if parameter.requires_grad]
    moments = 0
    for optimiser in optimisers(model, settings):
        size = sum(parameter.nbytes for group in optimiser.param_groups for parameter in group["params"])
        moments += size if isinstance(optimiser, Muon) else 2 * size
    return Plan(
        weights=weights // processes,
        gradients=sum(trained) // processes,
        optimiser=moments // processes,
        backbone_activations=backbone,
        code0_logits=kept(lambda: loss(model.codebook0_head(inner(frames, dim)))),
        depth_activations=depth,
        depth_logits=kept(lambda: loss(torch.einsum("nkd,kdv->nkv", inner(learned, k - 1, narrow), model.audio_head))),
        logits_working=(6 if bfloat16 else 4) * learned * (k - 1) * vocab,
        step_working=max(2 * max(trained) // processes, 3 * 4 * batch * length * (k + 1) * dim),
    )


def table(
    name: str,
    config: ModelConfig,
    settings: LMSettings,
    processes: int = 1,
    prepare: Callable[[CSM], CSM] = lambda model: model,
) -> list[str]:
    """The plan with the settings' share of the frames beside that with all frames, as lines; the last one is JSON."""
    some, all_frames = (
        plan(config, replace(settings, depth_share=share), processes=processes, prepare=prepare)
        for share in (settings.depth_share, 1.0)
    )
    rows, length = max(1, settings.batch_positions // settings.positions), settings.positions
    share = f"{settings.depth_share:.3g} of frames"
    precision = "bfloat16" if settings.bfloat16() else "float32"
    where = "one process" if processes == 1 else f"each of {processes} processes"
    lines = [
        f"{name} on {where}, {rows} x {length} rows a batch, {precision}, {settings.optimiser}"
        + (", activation checkpointing" if settings.checkpointing else ""),
        f"{'GB':<22}{share:>18}{'all frames':>14}",
    ]
    figures = {"some": {**asdict(some), "total": some.total}, "all": {**asdict(all_frames), "total": all_frames.total}}
    for field in figures["some"]:
        label = field.replace("_", " ")
        lines.append(f"{label:<22}{figures['some'][field] / 1e9:>18.2f}{figures['all'][field] / 1e9:>14.2f}")
    settings_used = {"model": name, "processes": processes, "depth_share": settings.depth_share}
    return [*lines, json.dumps({**settings_used, "bytes": figures["some"], "bytes_all_frames": figures["all"]})]
