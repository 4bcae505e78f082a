"""From logits to a code: temperature, top-k, and a draw without synchronising with the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """`topk` 1 is greedy; `temperature` divides the logits."""

    temperature: float = 0.9
    topk: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 10:
            raise InputError(f"The temperature is {self.temperature}; choose a number above 0 and at most 10.")
        if self.topk < 1:
            raise InputError(f"Top-k is {self.topk}; choose a whole number of at least 1.")


Noise = torch.Generator | Sequence[torch.Generator]  # one for the batch, or one for each row of it


def sample(logits: Tensor, sampling: Sampling, generator: Noise) -> Tensor:
    """logits (B, V) -> int64 codes (B,). With a generator for each row, a row draws what it would draw alone.

    Dividing probabilities by exponential noise and taking the largest draws from them exactly (the
    exponential races of the Gumbel-max trick), without the host sync of `torch.multinomial`.
    """
    if sampling.topk == 1:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.topk < logits.shape[-1]:
        smallest = logits.topk(sampling.topk, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    noise = torch.empty_like(logits)
    if isinstance(generator, torch.Generator):
        noise.exponential_(1, generator=generator)
    else:
        for row, own in zip(noise, generator, strict=True):
            row.exponential_(1, generator=own)
    return (logits.softmax(-1) / noise).argmax(-1)
