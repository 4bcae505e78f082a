"""The mean of trained weights (`python -m csm train average`): runs that began at one model, often better than each.

What several runs learned alike stays, what each learned by heart goes: after Wortsman et al. 2022, arXiv:2203.05482.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from csm.checkpoint import load_model
from csm.errors import InputError
from csm.training.finetune import save_like


def average(models: Sequence[str], shares: Sequence[float] | None, folder: Path) -> None:
    """Write the mean of `models` (presets, folders, hub ids) of one shape, weighted by `shares` (default: alike), with
    the codec and in the layout of the first. Raises `InputError`."""
    shares = list(shares or [1.0] * len(models))
    if len(shares) != len(models) or min(shares) < 0 or not sum(shares):
        raise InputError(f"{len(models)} models need as many shares, none below 0: got {', '.join(map(str, shares))}.")
    first = load_model(models[0])
    mean = {name: shares[0] / sum(shares) * value.double() for name, value in first.model.state_dict().items()}
    for name, share in zip(models[1:], shares[1:]):
        other = load_model(name).model
        if other.config != first.model.config:
            raise InputError(f"{name} has another shape than {models[0]}: only models of one shape have a mean.")
        for key, value in other.state_dict().items():
            mean[key] += share / sum(shares) * value.double()
    with torch.no_grad():
        for key, value in first.model.state_dict().items():
            value.copy_(mean[key])
    save_like(models[0], first.model, first.codec, folder)
