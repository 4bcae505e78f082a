"""Several runs beside each other (`python -m csm train curves RUN…`), such as a model at three sizes on the same
speech: their losses in one picture, and what each had come to on held-out speech as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csm.errors import InputError
from csm.model.size import parameter_counts
from csm.training.plots import plot_curves, read_metrics
from csm.training.run import say
from csm.training.shapes import kept_model

LOSSES = ("held_out_code0", "held_out_depth")


def compare(folders: Sequence[Path], picture: Path) -> list[str]:
    """Draw the curves into `picture` -> the table, in Markdown: a column for each run of `train lm`, a row for each
    step at which any was tried on held-out speech, nats of code 0 and of the other codes.

    Raises `InputError` for a folder that is no such run, or none that has come to a save.
    """
    runs = {}
    for folder in folders:
        records = read_metrics(folder)
        if not any(LOSSES[0] in record for record in records):
            raise InputError(f"The run in {folder.name} has no held-out losses yet: train it first (`train lm`).")
        millions = parameter_counts(kept_model(folder))["total"] / 1e6
        name = f"{folder.name}, {millions:.1f} M"
        if name in runs:
            raise InputError(f"Two runs are called {folder.name}: give each once, in folders of different names.")
        runs[name] = records
    if not plot_curves(runs, picture):
        say(f"No {picture.name}: matplotlib is not installed.")
    known = {name: {r["step"]: r for r in records if LOSSES[0] in r} for name, records in runs.items()}
    lines = [f"| step | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for step in sorted({step for saved in known.values() for step in saved}):
        at = [[f"{saved[step][loss]:.2f}" for loss in LOSSES] if step in saved else [] for saved in known.values()]
        lines.append(f"| {step} | {' | '.join(map(', '.join, at))} |")
    return lines
