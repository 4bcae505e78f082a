"""Figures as tables: as text for the terminal, and as Markdown in `docs/speed.md`, where earlier machines' stay."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from csm.assets import ASSETS
from csm.bench.figures import FRAME_SECONDS, Figures, frame_at
from csm.bench.plot import draw
from csm.bench.targets import reached
from csm.errors import InputError
from csm.extras import install
from csm.files import whole

FOLDER = ASSETS / "bench"
PAPER = ASSETS.parents[1] / "docs" / "speed.md"
TABLE, PLOT = "table.md", "speed.png"
BEGIN, END = "<!-- bench: what `python -m csm bench --save` writes -->", "<!-- bench: end -->"
# What the table is meant to hold: the start of a model's name, the kind of device, and what to call its row.
EXPECTED = (
    ("nano", "cpu", "`nano`"),
    ("tiny", "cpu", "CSM-1B's shape"),
    ("tiny", "cuda", "CSM-1B's shape, bfloat16"),
)


def table(figures: Figures) -> str:
    """The figures of all runs as lines of text."""
    parts = [_run(run) for run in figures.get("runs", {"": figures}).values()]
    if "peer" in figures:
        parts.append(_peer(figures["peer"]))
    parts += _targets(figures)
    return "\n\n".join(parts)


def _run(run: Figures) -> str:
    rows: list[tuple[str, ...]] = [("", "median", "min", "max", "p95")]
    rows += [(name.replace("_", " "), *_cells(value)) for name, value in run.items() if _is_spread(value)]
    rows += [(f"frame at {at} positions", *_cells(value)) for at, value in run["contexts"].items()]
    rows += [(f"frame of {streams} streams", *_cells(value)) for streams, value in run["batches"].items()]
    lines = [
        f"{run['model']} in {run['weights']}, {run['parameters'] / 1e6:.1f} M parameters, on {run['device']}",
        f"{run['repeats']} repeats after a warm-up, {run['prompt_seconds']} s of prompt",
        f"{run['accelerator'] or run['cpu']}, {run['cores']} cores, {run['threads']} threads",
        f"torch {run['torch']}, peak memory {run['peak_memory_mb']} MB",
        f"memory copied at {run['copy_gb_per_second']} GB/s",
        "",
    ]
    lines += [f"{row[0]:<34}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    for at, value in run["contexts"].items():
        share = f"{value['of_copy_bandwidth']:.0%} of the copy's"
        lines.append(f"at {at} positions weights and cache are read at {value['gb_per_second']} GB/s, {share}")
    for streams, value in run["batches"].items():
        lines.append(f"{streams} streams: {value['times_real_time']} x real time in all")
    for path, value in run["plain_torch"].items():
        ratio = value["median"] / frame_at(run)["median"]
        words = {"eager": "a launch for each operation", "graph": "as a CUDA graph"}[path]
        lines.append(f"plain torch, {words}: {1000 * value['median']:.2f} ms a frame, {ratio:.1f} times ours")
    for kind, turns in run["turns"].items():
        words = {"growing": "reading in its own text only", "reference": "reading in everything again"}[kind]
        firsts = ", ".join(f"turn {turn} {1000 * at:.1f}" for turn, at in turns.items() if _shown(turn, turns))
        lines.append(f"ms to a turn's first frame, {words}: {firsts}")
    if "loss" in run:
        loss = run["loss"]
        lines.append(
            f"against {loss['against']}: KL {loss['kl_code_0']:.2g} (code 0), {loss['kl_other_codes']:.2g} (others), "
            f"same likeliest code 0 in {loss['same_code_0']:.1%}"
        )
    return "\n".join([*lines, _memory(run)])


def _memory(run: Figures) -> str:
    needed = run["memory_needed_mb"]
    parts = ", ".join(f"{part.replace('_', ' ')} {size:,.0f}" for part, size in needed.items() if part != "total")
    peak = run["peak_device_memory_mb"]
    measured = f"{peak:,.0f} MB measured at the peak" if peak else "the peak is measured on CUDA only"
    within = "within" if run["memory_within_4500_mb"] else "above"
    return f"memory computed for one stream: {needed['total']:,.0f} MB ({parts}); {measured}: {within} 4 500 MB"


def _peer(peer: Figures) -> str:
    lines = [
        f"{peer['library']} in {peer['weights']}, in turn with ours: "
        f"greedy frames after {peer['positions']} positions, {peer['rounds']} rounds"
    ]
    for name, value in peer.items():
        if isinstance(value, dict):
            found = value["frame_seconds"]
            ratio = value.get("times_as_fast")
            words = f", {ratio['median']} x as fast ({ratio['min']} to {ratio['max']})" if ratio else ""
            lines.append(
                f"  {name:<14} {1000 * found['median']:9.1f} ms a frame (p95 {1000 * found['p95']:.1f}){words}"
            )
    return "\n".join(lines)


def _targets(figures: Figures) -> list[str]:
    """What was aimed at for this model and device, beside what was found; nothing for others."""
    lines = [
        f"  {target.words}: {'not measured' if found is None else f'{found:.4g}{target.unit}'}, "
        f"{'at most' if target.at_most else 'at least'} {target.limit:g}{target.unit} wanted"
        + ("" if found is None else f": {'met' if target.met(found) else 'missed'}")
        for target, found in reached(figures)
    ]
    return ["\n".join(["targets:", *lines])] if lines else []


def markdown(saved: dict[str, Figures]) -> str:
    """The table of all machines' figures, by the names they are saved under; what is missing is "not measured"."""
    lines = [
        "| model | weights | ms a frame (p95) | × real time | first audio, ms: running, known voice, new voice | "
        "GB/s (of a copy's) | several streams, × real time in all | against transformers | memory, computed |",
        "|" + "---|" * 9,
    ]
    for model, kind, label in EXPECTED:
        slug = f"{model}-{kind}"
        lines += _rows(label, saved[slug]) if slug in saved else [f"| {label} | {kind}: not measured |" + " |" * 7]
    expected = {f"{model}-{kind}" for model, kind, _ in EXPECTED}
    for slug, figures in sorted(saved.items()):
        if slug not in expected:
            lines += _rows(slug, figures)
    notes = [f"{slug}: {_where(figures)}." for slug, figures in sorted(saved.items())]
    return "\n".join([*lines, "", *notes])


def save(folder: Path, figures: Figures) -> str:
    """Keep the figures in `folder`, and make table and plot of all that are kept there. -> what was written, in words.

    In a source tree `PAPER` shows the default folder's table. Raises `InputError` when it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^\w.]+", "-", figures["model"].split(" ")[0].split("/")[-1])
        name = f"{slug}-{figures['device'].split(':')[0]}"
        _write(folder / f"{name}.json", json.dumps(figures, indent=1) + "\n")
        saved = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        text = markdown(saved)
        _write(folder / TABLE, text + "\n")
        drawn = draw(saved, folder / PLOT)
        shown = folder.resolve() == FOLDER.resolve() and show(PAPER, text, drawn)
    except OSError as error:
        raise InputError(f"The figures can't be written to {folder}: {error.strerror}.") from error
    words = f"Written to {folder}: {name}.json, {TABLE}" + (f", {PLOT}." if drawn else ".")
    if not drawn:
        words += f" The plot needs matplotlib: {install('train')}."
    return words + (" docs/speed.md shows them." if shown else "")


def show(paper: Path, text: str, drawn: bool) -> bool:
    """Put the table between the paper's marks; False where there are none."""
    whole = paper.read_text(encoding="utf-8") if paper.is_file() else ""
    if BEGIN not in whole or END not in whole:
        return False
    before, _, rest = whole.partition(BEGIN)
    after = rest.partition(END)[2]
    words = "Time of a frame by positions in use, time to a turn's first frame, and transformers beside ours"
    picture = f"![{words}](../csm/assets/bench/{PLOT})"
    pictured = drawn or (FOLDER / PLOT).is_file()
    _write(paper, f"{before}{BEGIN}\n{text}\n" + (f"\n{picture}\n" if pictured else "") + f"{END}{after}")
    return True


def _rows(label: str, figures: Figures) -> list[str]:
    peer = figures.get("peer", {})
    rows = []
    for weights, run in figures.get("runs", {figures["weights"]: figures}).items():
        frame = frame_at(run)
        audio = [
            f"{1000 * value['median']:.0f}" if (value := run.get(name)) else "–"
            for name in (
                "first_audio_seconds",
                "known_voice_first_audio_seconds",
                "new_voice_first_audio_seconds",
            )
        ]
        read = f"{frame['gb_per_second']} ({frame['of_copy_bandwidth']:.0%})" if "gb_per_second" in frame else ""
        streams = ", ".join(f"{count}: {value['times_real_time']:g}" for count, value in run["batches"].items())
        ratio, peak = peer.get(weights, {}).get("times_as_fast"), run["peak_device_memory_mb"]
        cells = [
            label,
            weights,
            f"{1000 * frame['median']:.1f} ({1000 * frame['p95']:.1f})",
            f"{FRAME_SECONDS / frame['median']:.2f}",
            ", ".join(audio),
            read,
            streams,
            f"{ratio['median']} × ({ratio['min']} to {ratio['max']})" if ratio else "",
            f"{(peak or run['memory_needed_mb']['total']) / 1000:.2f} GB{' measured' if peak else ''}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _where(figures: Figures) -> str:
    library = f", {figures['peer']['library']} in {figures['peer']['weights']}" if "peer" in figures else ""
    place = figures["accelerator"] or f"{figures['cpu']}, {figures['threads']} threads"
    return f"{figures['model']} on {place}, torch {figures['torch']}{library}"


def _is_spread(value: Any) -> bool:
    return isinstance(value, dict) and "p95" in value


def _cells(value: Figures) -> tuple[str, ...]:
    return tuple(f"{value[key]:.4g}" for key in ("median", "min", "max", "p95"))


def _shown(turn: str, turns: Figures) -> bool:
    return turn == "1" or int(turn) % 5 == 0 or int(turn) == len(turns)


def _write(file: Path, text: str) -> None:
    with whole(file) as part:
        part.write_text(text, encoding="utf-8")
