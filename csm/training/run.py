"""What every training run shares: the learning-rate schedule, checkpoints that resume, metrics, and their plot."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from csm import files
from csm.errors import InputError
from csm.training.distributed import Processes, load_module, load_optimiser, whole
from csm.training.memory import peak_bytes, reset_peak, resident_bytes
from csm.training.plots import METRICS, plot_run, read_lines
from csm.version import __version__


def warmup_cosine(step: int, steps: int, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def improve(optimisers: Sequence[torch.optim.Optimizer], loss: Tensor) -> None:
    """One step of each, their gradients no longer than 5 together."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], 5.0)
    for optimiser in optimisers:
        optimiser.step()


def say(line: str) -> None:
    """Print at once, even into a pipe: a training run is watched."""
    print(line, flush=True)


def versions() -> dict[str, str]:
    """What a run's figures depend on besides its settings."""
    return {"csm": __version__, "torch": torch.__version__, "python": platform.python_version()}


class Run:
    """One training run in a folder: `state.pt` to resume from, `metrics.jsonl` and `loss.png` to look at.

    The state is whole tensors on however many processes, written beside and moved into place by the first of them,
    so an interrupted save loses nothing. `settings` start the metrics file, with the versions, as a line of their own.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        optimisers: list[torch.optim.Optimizer],
        settings: dict[str, Any] | None = None,
        together: Processes = Processes(),  # noqa: B008 - frozen
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.module, self.optimisers, self.together = module, optimisers, together
        self.step = 0
        self.seconds = 0.0
        self._settings = settings
        self._started = time.monotonic()
        self._state = self.folder / "state.pt"
        self._metrics = self.folder / METRICS
        if self._state.exists():
            self._resume()
        if not together.alike(self.step):
            raise InputError(
                f"The run in {self.folder} was saved at another step on another machine: give an --out that all "
                "machines share, or copy its state.pt to each."
            )
        if together.first:
            self._start_metrics()

    def _resume(self) -> None:
        try:
            saved = torch.load(self._state, weights_only=True, map_location="cpu", mmap=self.together.count > 1)
            load_module(self.module, saved["module"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                load_optimiser(optimiser, state)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise InputError(
                f"The run saved in {self.folder.name} doesn't go with these settings ({str(error).splitlines()[0]}): "
                "give the settings it was started with, or another folder."
            ) from error
        self.step, self.seconds = saved["step"], saved["seconds"]
        self._started -= self.seconds

    def _start_metrics(self) -> None:
        """Forget what came after the last save, and say what this sitting runs with."""
        if self._metrics.exists():
            records = [
                record for record in read_lines(self._metrics) if self.step and record.get("step", 0) <= self.step
            ]
            with files.whole(self._metrics) as part:
                part.write_text("".join(json.dumps(record) + "\n" for record in records))
        if self._settings is not None:
            self._write(
                {
                    "settings": self._settings,
                    "versions": versions(),
                    "resumed_at": self.step,
                    "processes": self.together.count,
                    "device": self.together.device.type,
                    "resident_bytes": resident_bytes(self.together.device),
                }
            )

    def _write(self, record: dict[str, Any]) -> None:
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def elapsed(self) -> float:
        """Seconds of training, earlier sittings included."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Write `state.pt` anew; every process must call it, the first one writes."""
        state = {
            "module": whole(self.module.state_dict()),
            "optimisers": [whole(optimiser.state_dict()) for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.elapsed(),
        }
        if self.together.first:
            with files.whole(self._state) as part:
                torch.save(state, part)
        self.together.wait()

    def _save_or_say(self) -> None:
        try:
            self.save()
        except OSError as error:
            raise InputError(
                f"The run can't be saved in {self.folder.name} ({error.strerror or error}): make room and start the "
                "command again, to go on from the last save."
            ) from error

    def log(self, **metrics: Any) -> None:
        """One line in the metrics file, with the step and the seconds."""
        if self.together.first:
            self._write({"step": self.step, "seconds": round(self.elapsed(), 1), **metrics})

    def loop(
        self,
        steps: int,
        train_step: Callable[[int], Mapping[str, float | Tensor]],
        validate: Callable[[], Mapping[str, float | Tensor]],
        every: int = 500,
        log_every: int = 0,
        report: Callable[[str], None] = say,
    ) -> None:
        """Run `train_step(step)` up to `steps`; validate and save every `every` steps, and log the averages since
        the last line then and, if given, every `log_every` steps."""
        sums: dict[str, float | Tensor] = {}
        count, busy = 0, 0.0
        device = self.together.device
        bar = tqdm(
            total=steps, initial=self.step, unit="step", disable=not (self.together.first and sys.stderr.isatty())
        )
        with bar:
            reset_peak(device)
            while self.step < steps:
                began = time.monotonic()
                for name, value in train_step(self.step).items():
                    sums[name] = sums.get(name, 0.0) + value
                busy += time.monotonic() - began
                self.step += 1
                count += 1
                bar.update()
                saving = self.step % every == 0 or self.step == steps
                if not (saving or (log_every and self.step % log_every == 0)):
                    continue
                metrics = {name: round(float(value) / count, 6) for name, value in sums.items()}
                metrics |= {"step_seconds": round(busy / count, 4)}
                memory = peak_bytes(device)
                if saving:
                    metrics |= {f"held_out_{name}": round(float(value), 6) for name, value in validate().items()}
                    self._save_or_say()
                    reset_peak(device)
                self.log(**metrics, peak_bytes=memory)
                sums, count, busy = {}, 0, 0.0
                line = " ".join(f"{name} {value:.3g}" for name, value in metrics.items())
                if bar.disable:
                    if saving and self.together.first:
                        report(f"step {self.step}/{steps} {self.elapsed():.0f} s {line}")
                else:
                    bar.set_postfix_str(line)
                if saving and self.together.first and not plot_run(self.folder) and self.step == steps:
                    report("No loss.png: matplotlib is not installed.")
