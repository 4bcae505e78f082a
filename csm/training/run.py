"""What every training run shares: the learning-rate schedule, checkpoints that resume, and the metrics file."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def warmup_cosine(step: int, steps: int, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def say(line: str) -> None:
    """Print at once, even into a pipe: a training run is watched."""
    print(line, flush=True)


class Run:
    """One training run in a folder: `state.pt` to resume from, `metrics.jsonl` to plot.

    The state is written beside and moved into place, so an interrupted save loses nothing.
    """

    def __init__(self, folder: Path, module: nn.Module, optimisers: list[torch.optim.Optimizer]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.module, self.optimisers = module, optimisers
        self.step = 0
        self.seconds = 0.0
        self._started = time.monotonic()
        self._state = self.folder / "state.pt"
        if self._state.exists():
            saved = torch.load(self._state, weights_only=True, map_location="cpu")
            module.load_state_dict(saved["module"])
            for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            self.step, self.seconds = saved["step"], saved["seconds"]
            self._started -= self.seconds

    def elapsed(self) -> float:
        """Seconds of training, earlier sittings included."""
        return time.monotonic() - self._started

    def save(self) -> None:
        partial = self._state.with_suffix(".partial")
        torch.save(
            {
                "module": self.module.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "step": self.step,
                "seconds": self.elapsed(),
            },
            partial,
        )
        os.replace(partial, self._state)

    def log(self, **metrics: Any) -> None:
        record = {"step": self.step, "seconds": round(self.elapsed(), 1), **metrics}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def loop(
        self,
        steps: int,
        train_step: Callable[[int], dict[str, float]],
        validate: Callable[[], dict[str, float]],
        every: int = 500,
        report: Callable[[str], None] = say,
    ) -> None:
        """Run `train_step(step)` up to `steps`, averaging its metrics over `every` steps between saves."""
        sums: dict[str, float] = {}
        while self.step < steps:
            for name, value in train_step(self.step).items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
            if self.step % every == 0 or self.step == steps:
                count = self.step % every or every
                metrics = {name: round(value / count, 4) for name, value in sums.items()}
                metrics |= {f"held_out_{name}": round(value, 4) for name, value in validate().items()}
                sums = {}
                self.save()
                self.log(**metrics)
                line = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                report(f"step {self.step}/{steps} {self.elapsed():.0f} s {line}")
