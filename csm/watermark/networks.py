"""Perth's trained networks: what to add to a sound's decibels, and whether it is there."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.watermark.spectra import BINS


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, act: bool = True) -> None:
        super().__init__()
        self.reach = width // 2
        self.conv = nn.Conv1d(inputs, outputs, width, padding=self.reach)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self._acted(self.conv(x))

    def within(self, x: Tensor) -> Tensor:
        """The same with channels last, (B, frames, channels), where all that the convolution sees is in `x`, which
        gets shorter by that. One product: on a few frames torch's convolution takes three times as long."""
        seen = x.unfold(1, 2 * self.reach + 1, 1).flatten(2)
        return self._acted(F.linear(seen, self.conv.weight.flatten(1), self.conv.bias))

    def _acted(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x) if self.act else x


def _stack(outputs: int, hidden: int = 256) -> nn.Sequential:
    inner = [Conv(hidden, hidden, 7) for _ in range(5)]
    return nn.Sequential(Conv(BINS, hidden, 1), *inner, Conv(hidden, outputs, 1, act=False))


class Encoder(nn.Module):
    """What to add to the normalised decibels: (B, bins, frames) -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _stack(BINS)

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen)


class Decoder(nn.Module):
    """Three readers at 1.25, 1 and 0.75 times the pace, each with a vote and the weight of its vote."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_layers = _stack(2)
        self.normal_layers = _stack(2)
        self.fast_layers = _stack(2)

    def forward(self, seen: Tensor, sounding: Tensor) -> Tensor:
        """seen (B, bins, frames), sounding (B, 1, frames) -> (B,), near 0 without and near 1 with a mark."""
        frames = seen.shape[-1]
        votes = []
        for layers, pace in ((self.slow_layers, 1.25), (self.normal_layers, 1.0), (self.fast_layers, 0.75)):
            size = int(frames * pace)
            mask = F.interpolate(sounding, size)
            read = layers(F.interpolate(seen, size, mode="linear", align_corners=True))
            votes.append((read * mask).sum(-1) / mask.sum(-1).clamp(min=1.0))
        weight, vote = torch.stack(votes, dim=-1).unbind(1)
        return (vote * weight.softmax(-1)).sum(-1)


@lru_cache(maxsize=1)
def networks() -> tuple[Encoder, Decoder]:
    package = importlib.util.find_spec("perth")
    if package is None or package.origin is None:
        raise RuntimeError("The watermark is missing: install the package resemble-perth.")
    weights = Path(package.origin).parent / "perth_net/pretrained/implicit/perth_net_250000.pth.tar"
    state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
    with torch.device("meta"):
        encoder, decoder = Encoder(), Decoder()
    for name, network in (("encoder.", encoder), ("decoder.", decoder)):
        own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
        network.load_state_dict(own, assign=True)
        network.requires_grad_(False).eval()
    return encoder, decoder
