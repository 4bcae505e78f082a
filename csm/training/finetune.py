"""Teach a model somebody's own recordings (`python -m csm train lm --init MODEL --data FOLDER`).

A manifest's recordings (`csm/training/manifest.py`) become codes once, through the model's own codec; codes become
conversations as the engine would feed them; `csm/training/lm.py` trains on these; what comes out is a checkpoint or an
adapter that `csm.load` takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from csm.checkpoint import Loaded, convert, find_model, load_model, save_folder
from csm.checkpoint.configs import to_json
from csm.checkpoint.convert import BESIDE
from csm.checkpoint.hub import Snapshot, Token
from csm.checkpoint.published import MIMI_FILES, Layout, open_published, tokenizer_file
from csm.checkpoint.tensors import Stored, storable, write_tensors
from csm.codec import Codec
from csm.config import Environment, ModelConfig
from csm.engine.frames import RowFormat
from csm.errors import InputError
from csm.model import CSM
from csm.training.distributed import Processes
from csm.training.export import run_weights
from csm.training.lm import LMSettings, train_lm
from csm.training.lora import LoraOptions, add_lora, save_adapter
from csm.training.manifest import ManifestOptions, check_manifest, has_manifest
from csm.training.recordings import OwnConversations, encode, split
from csm.training.run import say

CODES = "codes"
PASSES = 10.0  # five minutes are learned by then; soon after, only they are, and no longer how to read
FEWEST_STEPS = 50


@dataclass(frozen=True)
class FinetuneOptions:
    """What of a manifest to learn, the share of its sentences held out for validation, and how: all weights of the
    model, or an adapter; and how often to pass over the recordings, if it isn't the settings that say so."""

    manifest: ManifestOptions = field(default_factory=ManifestOptions)
    held_out: float = 0.05
    lora: LoraOptions | None = None
    passes: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out <= 0.5:
            raise InputError(f"The held-out share is {self.held_out}; choose one between 0 and 0.5.")
        if self.passes is not None and not 0 < self.passes < 1e6:
            raise InputError(f"{self.passes} passes over the recordings make no training; choose some, such as 10.")


def add_arguments(lm: argparse.ArgumentParser) -> None:
    """The options of `python -m csm train lm` that are about one's own recordings and adapters."""
    lm.add_argument("--speakers", metavar="A,B", help="of a manifest's speakers only these")
    lm.add_argument("--on-bad", choices=["refuse", "skip"], default="refuse", help="manifest rows that can't be used")
    lm.add_argument(
        "--longest-seconds", type=float, default=ManifestOptions.longest, help="of a recording (default: 30)"
    )
    lm.add_argument("--held-out", type=float, default=0.05, help="share of a manifest's sentences kept for validation")
    lm.add_argument(
        "--passes", type=float, metavar="N", help=f"over one's own recordings, instead of --steps (default: {PASSES:g})"
    )
    lm.add_argument("--lora", type=int, metavar="RANK", help="train an adapter of this rank instead of all weights")
    lm.add_argument("--lora-alpha", type=float, metavar="ALPHA", help="its scale times its rank (default: twice RANK)")


def options_of(arguments: argparse.Namespace) -> FinetuneOptions:
    """What the options of `add_arguments` say. Raises `InputError`."""
    speakers = tuple(name.strip() for name in (arguments.speakers or "").split(",") if name.strip())
    manifest = ManifestOptions(speakers, arguments.longest_seconds, arguments.on_bad)
    rank, alpha = arguments.lora, arguments.lora_alpha
    lora = None if rank is None else LoraOptions(rank, 2.0 * rank if alpha is None else alpha)
    passes = PASSES if arguments.passes is None and arguments.steps is None else arguments.passes
    return FinetuneOptions(manifest, arguments.held_out, lora, passes)


def is_own_speech(data: Path, init: str | None) -> bool:
    """Whether `data` is for this file: it has a manifest, or a model is to learn from it and it is nothing else."""
    return has_manifest(data) or (init is not None and not any(data.glob("utterances-*.jsonl")))


def run(
    arguments: argparse.Namespace,
    settings_of: Callable[[argparse.Namespace, ModelConfig, bool], LMSettings],
    together: Processes,
) -> None:
    """`python -m csm train lm` on one's own recordings. Raises `InputError`."""
    if not arguments.init:
        raise InputError(f"{arguments.data} holds your own recordings: say with --init which model is to learn them.")
    options = options_of(arguments)
    loaded = load_model(arguments.init)
    settings = settings_of(arguments, loaded.model.config, together.count > 1)
    finetune(loaded, arguments.init, arguments.data, arguments.out, settings, options, together)


def finetune(
    loaded: Loaded,
    init: str,
    data: Path,
    folder: Path,
    settings: LMSettings,
    options: FinetuneOptions = FinetuneOptions(),
    together: Processes = Processes(),  # noqa: B008 - frozen
    report: Callable[[str], None] = say,
) -> Path:
    """Train (or resume) `loaded`, which `init` names, on the recordings in `data`; returns what to give `csm.load`.

    Everything about the recordings is checked before any step. In `folder` are then, beside the run, `codes` and
    `model`, a checkpoint in the layout of `init` with its codec and tokenizer; or `adapter`. Raises `InputError`.
    """
    tell = report if together.first else lambda line: None
    settings = replace(settings, positions=min(settings.positions, loaded.model.config.max_positions))
    manifest = check_manifest(data, loaded.tokenizer, settings.positions, options.manifest)
    for line in manifest.lines():
        tell(line)
    codes = encode(manifest.recordings, loaded.codec, folder / CODES, together, tell)
    held = split(manifest.recordings, options.held_out, settings.seed)
    learned = [(recording, made) for recording, made, out in zip(manifest.recordings, codes, held) if not out]
    unheard = [(recording, made) for recording, made, out in zip(manifest.recordings, codes, held) if out]
    rows = RowFormat.of(loaded.model.config, loaded.tokenizer)
    train = OwnConversations(learned, rows, settings.seed)
    settings = _paced(settings, options, train.positions / together.count)
    tell(f"{len(learned)} recordings to learn from, {len(unheard)} held out, {settings.steps} steps")
    held_out = OwnConversations(unheard, rows, seed=0) if unheard else None
    model = add_lora(loaded.model, options.lora, settings.seed) if options.lora else loaded.model
    train_lm(model, train, held_out, folder, settings, together)
    written = folder / ("adapter" if options.lora else "model")
    if together.first:
        if together.count > 1:
            model = _whole(loaded, folder, options.lora)
        model, codec = model.cpu(), loaded.codec
        codec.module.cpu()
        if options.lora:
            save_adapter(model, written, options.lora, init)
            tell(f"written: {written}, to use with --model {init} --adapter {written}")
        else:
            save_like(init, model, codec, written)
            tell(f"written: {written}, to use with --model {written}")
    together.wait()
    return written


def _paced(settings: LMSettings, options: FinetuneOptions, positions: float) -> LMSettings:
    """The settings with as many steps as passes over so many `positions` take, and a warm-up and saves to match."""
    steps = settings.steps
    if options.passes:
        steps = max(FEWEST_STEPS, round(options.passes * positions / settings.batch_positions / settings.accumulate))
    every = min(settings.every, max(1, steps // 4))
    warmup, log_every = min(settings.warmup, steps // 10), min(settings.log_every, every)
    return replace(settings, steps=steps, warmup=warmup, every=every, log_every=log_every)


def _whole(loaded: Loaded, folder: Path, lora: LoraOptions | None) -> CSM:
    """The trained model from the run's saved state: what several processes hold of it are parts."""
    model = CSM(loaded.model.config)
    if lora:
        add_lora(model, lora)
    model.load_state_dict(run_weights(folder))
    return model


def save_like(init: str, model: CSM, codec: Codec, folder: Path) -> None:
    """Write a model that came from `init` in the layout and precision of that, with its codec and tokenizer.

    The folder appears whole or not at all, in the place of one that was there.
    """
    token = Environment.read().token
    found = find_model(init, token)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".saving-") as scratch:
        made = Path(scratch) / "model"
        if isinstance(found, Path):
            save_folder(made, model, codec.module)
        else:
            original = Path(scratch) / "original"
            layout = _save_original(found, model, original, token)
            if layout == "original":
                made = original
            else:
                convert(str(original), made, layout)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def _save_original(source: Snapshot, model: CSM, folder: Path, token: Token) -> Layout:
    """Trained weights in the original layout, and what else `source` has; returns the layout that `source` is in."""
    opened = open_published(source.weights, source.repository, token)
    folder.mkdir()
    trained = {name: replace(Stored.of(t), dtype=opened.csm[name].dtype) for name, t in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", trained)
    mimi = storable(opened.mimi())
    write_tensors(folder / MIMI_FILES[0], mimi)
    (folder / "config.json").write_text(json.dumps(to_json(opened.config, opened.given), indent=2) + "\n")
    for name in BESIDE:
        if (opened.folder / name).is_file():
            shutil.copy(opened.folder / name, folder / name)
    shutil.copy(tokenizer_file(opened.folder, token), folder / "tokenizer.json")
    return opened.layout
