"""Matrices in four bits: whole numbers from -8 to 7 in groups of neighbours along a row, and a scale for each group.

Beside the way from script to sound. The layout is that of ONNX Runtime's `MatMulNBits`: two numbers to a byte, the
first in the lower half, eight added to each. No product is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128  # neighbours that share a scale; fewer where rows don't divide by so many
GROUPS = (GROUP, 64, 32)
SHORT = 1024  # rows below it take the smallest group: in a small model a byte more costs nothing, and rounding most
LOWEST, HIGHEST = -8, 7
SHRINKINGS = (1.0, 0.93, 0.86)  # of a group's range: what is cut off at its end is gained between its steps
NUMBERS_AT_ONCE = 1 << 18  # what is between them stays in a processor's cache


@dataclass(frozen=True)
class Int4:
    """A matrix (out, in): `packed` uint8 (out, groups, group / 2) and `scales` float32 (out, groups)."""

    packed: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * self.group

    @property
    def group(self) -> int:
        return 2 * self.packed.shape[2]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    @classmethod
    def of_rows(cls, *parts: Int4) -> Int4:
        """One matrix of the rows of several, in groups of the same size."""
        return cls(torch.cat([part.packed for part in parts]), torch.cat([part.scales for part in parts]))

    def wide(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers that it stands for, (out, in)."""
        pairs = torch.stack((self.packed & 15, self.packed >> 4), dim=-1).flatten(2)
        return (pairs.to(dtype).sub_(8) * self.scales.to(dtype)[..., None]).flatten(1)


def group_for(inputs: int) -> int | None:
    """The usual group of a row of so many numbers; None for a row that no group divides."""
    groups = GROUPS if inputs >= SHORT else GROUPS[-1:]
    return next((group for group in groups if inputs % group == 0), None)


def rounded_to_int4(weight: Tensor, group: int) -> Int4:
    """The nearest `Int4` of a weight (out, in), whose rows divide by `group`, of several scales for each group.

    Raises `ValueError` for rows that don't."""
    out, inputs = weight.shape
    if inputs % group:
        raise ValueError(f"Rows of {inputs} don't divide by {group}.")
    packed = torch.empty(out, inputs // group, group // 2, dtype=torch.uint8)
    scales = torch.empty(out, inputs // group)
    rows = max(1, NUMBERS_AT_ONCE // inputs)
    for start in range(0, out, rows):
        some = weight[start : start + rows].detach().float().view(-1, inputs // group, group)
        numbers, size = _nearest(some)
        numbers = (numbers - LOWEST).to(torch.uint8)
        packed[start : start + rows] = numbers[..., 0::2] | numbers[..., 1::2] << 4
        scales[start : start + rows] = size[..., 0]
    return Int4(packed, scales)


def _nearest(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (..., group) -> whole numbers of that shape and a scale of each (..., 1), of the smallest squares."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    extreme = torch.where(high > -low, high, low)  # it has the lowest number, of which there is one more
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for shrinking in SHRINKINGS:
        size = extreme * (shrinking / LOWEST)
        size = torch.where(size == 0, 1.0, size)
        numbers = (groups / size).round_().clamp_(LOWEST, HIGHEST)
        along, own = (numbers * groups).sum(-1, keepdim=True), numbers.square().sum(-1, keepdim=True)
        fitted = torch.where(own > 0, along / own.clamp_min(1), size)  # of all scales the best for these numbers
        gain = along * fitted  # what of the groups' squares is explained
        if best is None:
            best = numbers, fitted, gain
        else:
            better = gain > best[2]
            best = (
                torch.where(better, numbers, best[0]),
                torch.where(better, fitted, best[1]),
                torch.where(better, gain, best[2]),
            )
    assert best is not None
    return best[0], best[1]
