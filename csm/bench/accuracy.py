"""What fewer bits cost: how far the codes' distributions move when a model's weights are packed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from csm.engine.frames import Segment
from csm.kernels import quantise_rows, quantise_rows_float8
from csm.model import CSM
from csm.model.packed import rounded_by_kernels
from csm.speech.generator import Generator

FRAMES = 24  # of which the depth decoder's codes are compared


def quantisation_loss(generator: Generator, other: Generator, segments: list[Segment]) -> dict[str, float]:
    """How `other`, the same model in fewer bits, differs from `generator` in what it expects of `segments`' frames.

    Both read the same text and codes. `kl_code_0` and `kl_other_codes` are mean Kullback-Leibler divergences from
    `generator`'s distributions to `other`'s, in nats, at temperature 1; `same_code_0` is how often both find the same
    code 0 the likeliest.
    """
    rows = generator.prompt_rows(segments)
    audio = rows.mask[:, 0]
    spoken = audio & torch.cat([audio[1:], audio.new_zeros(1)])  # a segment's last audio row is the zero frame
    at = spoken.nonzero()[:, 0] - 1  # the state before a frame is what predicts it
    codes = rows.ids[spoken][:, :-1]
    exact, near = (
        _logits(model, rows.ids.to(generator.device), rows.mask.to(generator.device), at, codes.to(generator.device))
        for model in (as_read(generator), as_read(other))
    )
    return {
        "kl_code_0": _divergence(exact[0], near[0]),
        "kl_other_codes": _divergence(exact[1], near[1]),
        "same_code_0": (exact[0].argmax(-1) == near[0].argmax(-1)).float().mean().item(),
        "frames": len(codes),
    }


def as_read(generator: Generator) -> CSM:
    """The model with the weights that its frames are made from: fused kernels round them and leave its own alone."""
    model, weights = generator.engine.model, generator.engine.lineups.weights
    return rounded(model, weights) if rounded_by_kernels(weights, generator.device) else model


@torch.no_grad()
def rounded(model: CSM, weights: str) -> CSM:
    """A copy of `model` whose layers have the numbers that "int8" or "float8" stand for in fused kernels."""
    quantise = {"int8": quantise_rows, "float8": quantise_rows_float8}[weights]
    made = copy.deepcopy(model)
    for transformer in (made.backbone, made.decoder):
        for linear in transformer.modules():
            if isinstance(linear, nn.Linear):
                data, scale = quantise(linear.weight)
                linear.weight.copy_(data.float() * scale[:, None])
    return made


@torch.inference_mode()
def _logits(model: CSM, ids: Tensor, mask: Tensor, at: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of code 0 at every frame (frames, V), and of the others at the first ones (n, K-1, V)."""
    states = model.backbone(model.embed_rows(ids[None], mask[None]))[0, at]
    others = model.depth_logits(states[:FRAMES], codes[:FRAMES])
    return model.codebook0_head(states).float().log_softmax(-1), others.float().log_softmax(-1)


def _divergence(exact: Tensor, near: Tensor) -> float:
    return (exact.exp() * (exact - near)).sum(-1).mean().item()
