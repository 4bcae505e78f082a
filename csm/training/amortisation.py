"""What compute amortisation saves and costs (`python -m csm train amortisation`): the same model trained twice from the
same seed, the depth decoder learning a share of the frames and all of them, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from csm.config import PRESETS
from csm.errors import InputError
from csm.training import lm_command
from csm.training.plan import table
from csm.training.plots import plot_curves, read_header, read_metrics
from csm.training.run import say
from csm.training.shapes import kept_model


@dataclass(frozen=True)
class Outcome:
    """One of the two runs: its last losses on held-out speech, seconds a step (median), and the peak memory of a
    training step in bytes, in all and above what the process held before the first step."""

    depth_share: float
    steps: int
    held_out_depth: float
    held_out_code0: float
    step_seconds: float
    peak_bytes: int
    peak_above_start_bytes: int


def read_outcome(folder: Path) -> Outcome:
    """Raises `InputError` where a run has not come to a save yet."""
    records, header = read_metrics(folder), read_header(folder)
    saved = [record for record in records if "held_out_depth" in record]
    if not saved or header is None:
        raise InputError(f"The run in {Path(folder).name} has no held-out losses yet: train it first.")
    peak = max(record["peak_bytes"] for record in records)
    times = sorted(record["step_seconds"] for record in records)
    return Outcome(
        depth_share=header["settings"]["depth_share"],
        steps=saved[-1]["step"],
        held_out_depth=saved[-1]["held_out_depth"],
        held_out_code0=saved[-1]["held_out_code0"],
        step_seconds=times[len(times) // 2],
        peak_bytes=peak,
        peak_above_start_bytes=peak - header["resident_bytes"],
    )


def compared(share: Outcome, everything: Outcome) -> list[str]:
    """Both outcomes as a table."""
    rows = [
        ("depth loss, held out", "held_out_depth", 1, ".4f"),
        ("code 0 loss, held out", "held_out_code0", 1, ".4f"),
        ("seconds a step", "step_seconds", 1, ".3f"),
        ("peak memory, MB", "peak_bytes", 1e6, ".0f"),
        ("  above the start, MB", "peak_above_start_bytes", 1e6, ".0f"),
    ]
    lines = [f"{share.steps} steps{'':<14}{f'{share.depth_share:.3g} of frames':>18}{'all frames':>14}{'ratio':>9}"]
    for label, field, unit, form in rows:
        some, full = getattr(share, field), getattr(everything, field)
        ratio = f"{some / full:>9.3f}" if full else ""
        lines.append(f"{label:<24}{some / unit:>18{form}}{full / unit:>14{form}}{ratio}")
    return lines


def _train(arguments: argparse.Namespace) -> None:
    try:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        lm_command.run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def run(arguments: argparse.Namespace) -> None:
    """Train both (or go on where they stopped) and print how they compare: a table, the memory computed for the
    preset and for `tiny`, and as the last line everything as JSON. Raises `InputError`."""
    if arguments.depth_share >= 1:
        raise InputError("Give a --depth-share below 1 to compare with all frames, such as 0.0625.")
    folder = Path(arguments.out)
    folders = {arguments.depth_share: folder / "share", 1.0: folder / "all"}
    for share, out in folders.items():
        options = argparse.Namespace(**{**vars(arguments), "depth_share": share, "out": out})
        child = multiprocessing.get_context("spawn").Process(target=_train, args=(options,))
        child.start()
        child.join()
        if child.exitcode:
            raise InputError(f"The run with {share:.3g} of the frames stopped; start the command again to go on.")
    share, everything = (read_outcome(out) for out in folders.values())
    if not plot_curves(
        {f"{arguments.depth_share:.3g} of frames": read_metrics(folder / "share"), "all": read_metrics(folder / "all")},
        folder / "amortisation.png",
    ):
        say("No amortisation.png: matplotlib is not installed.")
    record: dict[str, Any] = {"share": asdict(share), "all": asdict(everything)}
    record["depth_loss_ratio"] = share.held_out_depth / everything.held_out_depth
    lines = compared(share, everything)
    trained, _ = lm_command.starting_shape(arguments)
    for name, shape in {trained: kept_model(folder / "share"), "tiny": PRESETS["tiny"]}.items():
        settings = lm_command.settings_of(arguments, shape, several=False)
        *planned, figures = table(name, shape, settings)
        lines += ["", "Computed: " + planned[0], planned[1], planned[-1]]
        record.setdefault("computed", []).append(json.loads(figures))
    lines.append(json.dumps(record))
    (folder / "amortisation.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines))
