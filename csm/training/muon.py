"""Muon: momentum whose matrices are made orthogonal before each step (Jordan 2024, kellerjordan.github.io/posts/muon).

As `torch.optim.Muon` has it, but in the precision that the device is quick in: torch's multiplies in bfloat16 alone,
which takes a processor without instructions for it longer than all the rest of a training step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from csm.model.precision import quick_in_bfloat16

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices. The rate is that of AdamW: updates have the root mean square that its updates have."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(average, group["momentum"]))  # Nesterov's
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to `matrix`, roughly: its singular values come out between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16() if quick_in_bfloat16(matrix.device.type) else matrix.float()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)
