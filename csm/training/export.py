"""Training runs -> the folder that `csm.load` reads: the newest saved codec and language model, packed together."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from csm.checkpoint import fill, find_model, load_model, save_folder
from csm.checkpoint.configs import to_json
from csm.checkpoint.published import MIMI_FILES, open_published
from csm.checkpoint.tensors import Stored, storable, write_tensors
from csm.codec import Codec, build_codec
from csm.config import CodecConfig, Environment, ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.training.shapes import kept_codec, kept_model, make_folder

NORMED = ".parametrizations.weight.original"  # ends in 0: lengths, in 1: directions
TOKENIZER = "tokenizer.json"  # of a run with Llama 3's tokenizer, and of what is exported from it


def run_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a run's `state.pt`. Raises `InputError` when the run has saved nothing yet."""
    state = Path(folder) / "state.pt"
    if not state.exists():
        raise InputError(f"The run in {Path(folder).name} has saved nothing yet: train it first.")
    try:
        return torch.load(state, weights_only=True, map_location="cpu")["module"]
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"The {state.name} in {Path(folder).name} is damaged: train it again.") from error


def folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A codec's state with its weight norms, which only training has, folded in."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(f"{NORMED}1"):
            stem = name.removesuffix(f"{NORMED}1")
            made[f"{stem}.weight"] = torch._weight_norm(tensor, tensors[f"{stem}{NORMED}0"], 0)
        elif not name.endswith(f"{NORMED}0"):
            made[name] = tensor
    return made


def trained_codec(folder: Path) -> Codec:
    """The codec of a run of `train codec`, of whichever kind and shape that is. Raises `InputError`."""
    codec = build_codec(kept_codec(folder))
    weights = {k.removeprefix("codec."): v for k, v in run_weights(folder).items() if k.startswith("codec.")}
    fill(codec.module, folded(weights), f"run in {folder.name}")
    if not all(bool(tensor) for name, tensor in codec.module.named_buffers() if name.endswith("_initialized")):
        raise InputError(f"The codec in {folder.name} has no codes yet: train it on, until its codebooks have begun.")
    return codec


def model_codec(name: str) -> Codec:
    """The codec of a model, a folder or a hub id, without reading its language model. Raises `InputError`."""
    token = Environment.read().token
    found = find_model(name, token)
    if isinstance(found, Path):
        return load_model(name).codec
    opened = open_published(found.weights, found.repository, token)
    codec = build_codec(opened.config.codec)
    fill(codec.module, opened.mimi(), f"checkpoint {name}'s codec", torch.float32)
    return codec


def export(lm_run: Path, codec: Codec, folder: Path) -> None:
    """Write the language model of a run and the codec whose codes it learned into `folder`.

    In our own layout or, with Llama 3's tokenizer, in the original published one. Raises `InputError`.
    """
    config = kept_model(lm_run)
    if config.codec != codec.config:
        raise InputError(
            f"The language model in {lm_run.name} learned the codes of another codec ({_said(config.codec)}) than this "
            f"one ({_said(codec.config)}): name the one that made them with --codec or --model."
        )
    with torch.device("meta"):
        model = CSM(config)
    fill(model, run_weights(lm_run), f"run in {lm_run.name}")
    if config.tokenizer == "bytes":
        make_folder(folder)
        save_folder(folder, model, codec.module)
    else:
        _save_original(config, model, codec, lm_run / TOKENIZER, folder)


def _said(config: CodecConfig) -> str:
    return f"{config.kind}, {config.num_codebooks} codebooks of {config.codebook_size}"


def _save_original(config: ModelConfig, model: CSM, codec: Codec, tokenizer: Path, folder: Path) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already: name a new folder.")
    if not tokenizer.is_file():
        raise InputError(f"The run in {tokenizer.parent.name} has no {TOKENIZER}: put the one it learned with there.")
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        for name, module in (("model.safetensors", model), (MIMI_FILES[0], codec.module)):
            stored = {key: Stored.of(tensor) for key, tensor in module.state_dict().items()}
            write_tensors(made / name, storable(stored))
        (made / "config.json").write_text(json.dumps(to_json(config), indent=2) + "\n")
        shutil.copy(tokenizer, made / TOKENIZER)
        made.rename(folder)
