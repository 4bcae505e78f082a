"""The mean of trained weights (`python -m csm train average`): runs that began at one model, often better than each.

What several runs learned alike stays, what each learned by heart goes: after Wortsman et al. 2022, arXiv:2203.05482.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from csm.checkpoint import Loaded, load_model
from csm.errors import InputError
from csm.training.finetune import save_like


def average(models: Sequence[str], shares: Sequence[float] | None, folder: Path) -> None:
    """Write the mean of `models` (presets, folders, hub ids) of one shape, their codecs' too, weighted by `shares`
    (default: alike), in the layout of the first. Raises `InputError`."""
    shares = list(shares or [1.0] * len(models))
    if len(shares) != len(models) or min(shares) < 0 or not sum(shares):
        raise InputError(f"{len(models)} models need as many shares, none below 0: got {', '.join(map(str, shares))}.")
    first = load_model(models[0])
    own = _weights(first)
    mean = {name: shares[0] / sum(shares) * value.double() for name, value in own.items()}
    for name, share in zip(models[1:], shares[1:]):
        other = load_model(name)
        if other.model.config != first.model.config:
            raise InputError(f"{name} has another shape than {models[0]}: only models of one shape have a mean.")
        for key, value in _weights(other).items():
            mean[key] += share / sum(shares) * value.double()
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(mean[key])
    save_like(models[0], first.model, first.codec, folder)


def _weights(loaded: Loaded) -> dict[str, Tensor]:
    parts = {"model": loaded.model, "codec": loaded.codec.module}
    named = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    return {name: value for name, value in named.items() if value.is_floating_point()}
