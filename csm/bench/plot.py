"""The figures as one picture: frames by context, first frames by turn, and transformers beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csm.files import whole

REAL_TIME_MS = 80.0


def draw(saved: dict[str, dict[str, Any]], target: Path) -> bool:
    """Draw all machines' figures, by name, as a PNG; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    frames, turns, peers = figure.subplots(1, 3)
    color = 0
    bars: list[tuple[str, float]] = []
    for name, figures in saved.items():
        for weights, run in figures.get("runs", {figures["weights"]: figures}).items():
            label, color = f"{name}, {weights}", color + 1
            points = [(int(at), 1000 * value["median"]) for at, value in run["contexts"].items()]
            if points:
                frames.plot(*zip(*points), "o-", color=f"C{color}", label=label)
            for kind, style, words in (("growing", "o-", "own text only"), ("reference", "x--", "everything again")):
                if found := run["turns"].get(kind):
                    line = [(int(turn), 1000 * seconds) for turn, seconds in found.items()]
                    turns.plot(*zip(*line), style, color=f"C{color}", markersize=3, label=f"{label}: {words}")
        for who, value in figures.get("peer", {}).items():
            if isinstance(value, dict):
                bars.append((f"{name}, {who}", 1000 * value["frame_seconds"]["median"]))
    frames.axhline(REAL_TIME_MS, color="grey", linewidth=0.8, linestyle=":")
    frames.set(title="a frame of 80 ms (dotted) takes", xlabel="positions in use", ylabel="ms", yscale="log")
    turns.set(title="first frame of a turn, by how it reads", xlabel="turn", ylabel="ms", yscale="log")
    if bars:
        peers.set(title="in turn with transformers in bfloat16", xlabel="ms a frame")
        names, lengths = zip(*reversed(bars))
        colors = ["C7" if name.endswith("transformers") else "C0" for name in names]
        peers.bar_label(peers.barh(range(len(names)), lengths, color=colors), fmt="%.0f", padding=2)
        peers.set_yticks(range(len(names)), names, fontsize=8)
        peers.margins(x=0.12)
    else:
        peers.set_axis_off()
    for axes in (frames, turns):
        axes.grid(alpha=0.3, which="both")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")  # labels of its own would lie on one another
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    with whole(target) as part:
        figure.savefig(part, format="png", dpi=110)
    return True
