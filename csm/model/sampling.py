"""From logits to a code: temperature, top-k, min-p, and a draw without synchronising with the device.

What is random comes in from outside: a stream draws a frame's noise at once from its own generator, so the same
seed gives the same codes whether the stream is stepped alone, beside others, or by a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.settings import Settings

USUAL_WIDTH = 64  # of the top-k that streams share: the first power of two above the usual 50


@dataclass(frozen=True)
class RowSampling:
    """Each row's own temperature, float32 (B, 1), and top-k, int64 (B, 1), on the device: changing them changes no
    shape. `width` is how many of the best logits are looked at: no row's top-k is larger, unless it is the whole
    vocabulary. A greedy row has temperature 1, top-k 1 and noise of ones. `floor`, float32 (B, 1), is each row's
    `Settings.floor`, or None where no row has any."""

    temperature: Tensor
    topk: Tensor
    width: int
    floor: Tensor | None = None

    @classmethod
    def new(cls, sampling: Sequence[Settings], vocab: int, device: torch.device) -> RowSampling:
        """A row for each of `sampling`, which is `filled`."""
        temperatures, topks, floors = [], [], []
        for one in sampling:
            assert one.temperature is not None and one.topk is not None, "not `filled`"
            temperatures.append([1.0 if one.greedy else one.temperature])
            topks.append([min(one.topk, vocab)])
            floors.append([one.floor])
        floor = torch.tensor(floors, device=device) if any(one.min_p for one in sampling) else None
        width = width_for(max(map(max, topks)), vocab)
        return cls(torch.tensor(temperatures, device=device), torch.tensor(topks, device=device), width, floor)


def width_for(topk: int, vocab: int) -> int:
    """The `RowSampling.width` for rows whose largest top-k is `topk`: of two kinds only, since each is a graph."""
    return min(USUAL_WIDTH, vocab) if topk <= USUAL_WIDTH else vocab


def frame_noise(
    generators: Sequence[torch.Generator],
    codebooks: int,
    vocab: int,
    device: torch.device,
    sampling: Sequence[Settings] | None = None,
) -> Tensor:
    """The noise of one frame, exponential with mean 1, float32 (B, K, V): one draw for each row's generator, and ones
    for rows whose `sampling` is greedy."""
    noise = torch.ones(len(generators), codebooks, vocab, device=device)
    for number, (row, generator) in enumerate(zip(noise, generators)):
        if sampling is None or not sampling[number].greedy:
            row.exponential_(1, generator=generator)
    return noise


def sample(logits: Tensor, sampling: Settings | RowSampling, noise: Tensor | None) -> Tensor:
    """logits (B, V) and noise (B, V) -> int64 codes (B,). Greedy sampling of all rows needs no noise.

    Dividing probabilities by exponential noise and taking the largest draws from them exactly (the
    exponential races of the Gumbel-max trick), without the host sync of `torch.multinomial`. Settings are `filled`.
    """
    vocab = logits.shape[-1]
    if isinstance(sampling, Settings):
        if sampling.greedy:
            return logits.argmax(-1)
        assert sampling.temperature is not None and sampling.topk is not None, "not `filled`"
        logits = logits.float() / sampling.temperature
        if sampling.topk < vocab:
            logits = _best(logits, logits.topk(sampling.topk, dim=-1).values[..., -1:])
        if sampling.min_p:
            logits = _best(logits, logits.amax(-1, keepdim=True) + sampling.floor)
    else:
        logits = logits.float() / sampling.temperature
        ordered = logits.topk(min(sampling.width, vocab), dim=-1).values
        logits = _best(logits, ordered.gather(-1, sampling.topk.clamp_max(ordered.shape[-1]) - 1))
        if sampling.floor is not None:
            logits = _best(logits, ordered[..., :1] + sampling.floor)
    assert noise is not None, "only greedy sampling needs no noise"
    return (logits.softmax(-1) / noise).argmax(-1)


def _best(logits: Tensor, smallest: Tensor) -> Tensor:
    return logits.masked_fill(logits < smallest, -torch.inf)
