"""A training run's loss curves as a picture, drawn from its metrics file with matplotlib where that is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
NOT_CURVES = {"step", "seconds", "step_seconds", "peak_bytes", "rate", "gradient_norm", "skipped"}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, without a last line that was cut off."""
    records = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, one a logged step; the lines with settings are left out."""
    return [record for record in read_lines(Path(folder) / METRICS) if "step" in record]


def read_header(folder: Path) -> dict[str, Any] | None:
    """What a run was last started with: its settings, versions, device and memory; None where it does not say."""
    found = [record for record in read_lines(Path(folder) / METRICS) if "settings" in record]
    return found[-1] if found else None


def plot_curves(runs: Mapping[str, list[dict[str, Any]]], target: Path) -> bool:
    """One panel a metric that isn't zero throughout, one colour a run, held-out values dashed; False where matplotlib
    is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    everything = [record for records in runs.values() for record in records]
    names = dict.fromkeys(name for record in everything for name in record if not name.startswith("held_out_"))
    panels = [name for name in names if name not in NOT_CURVES and any(record.get(name) for record in everything)]
    if not panels:
        return True
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for number, (label, records) in enumerate(runs.items()):
            for key, style, kind in ((name, "-", "training"), (f"held_out_{name}", "--", "held out")):
                points = [(record["step"], record[key]) for record in records if key in record]
                if points:
                    legend = " ".join(part for part in (label, kind) if part)
                    axes.plot(*zip(*points), style, color=f"C{number}", linewidth=1.2, label=legend)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    partial = target.with_name(f".{target.name}")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(target)
    return True


def plot_run(folder: Path) -> bool:
    """Draw `loss.png` in a run's folder; False where matplotlib is missing."""
    return plot_curves({"": read_metrics(folder)}, Path(folder) / "loss.png")
