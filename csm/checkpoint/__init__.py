"""Files <-> weights: the embedded model's folder, and the published models, local or from the hub.

`load_model` finds out what a name means; each layout has a file of its own. Every load is strict: a missing or
unknown key is an error that names it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from csm.checkpoint.folder import INDEX, is_ours, read_folder, save_folder
from csm.checkpoint.hub import HUB_MIMI, HUB_MODEL, HUB_TOKENIZER, Snapshot, fetch_model
from csm.checkpoint.published import WEIGHTS, find_weights, read_published
from csm.checkpoint.tensors import Loaded, fill, open_tensors
from csm.config import PRESETS, Environment
from csm.errors import InputError

ASSETS = Path(__file__).parent.parent / "assets"

__all__ = [
    "ASSETS",
    "HUB_MIMI",
    "HUB_MODEL",
    "HUB_TOKENIZER",
    "INDEX",
    "Loaded",
    "fill",
    "load_model",
    "open_tensors",
    "save_folder",
]


def load_model(name: str, dtype: torch.dtype = torch.float32, adapter: str | None = None) -> Loaded:
    """A preset, a local folder or file in any of the three layouts, or a hub id. On the CPU.

    `dtype` is the published models' language model's; codecs and our own folders, which are small, stay float32.
    `adapter` is a PEFT adapter, a folder or a hub id, to merge into a published model. Raises `InputError` with one
    sentence for anything that can't be loaded; nothing is half loaded.
    """
    token = Environment.read().token
    found = _find(name, token)
    if isinstance(found, Path):
        if adapter:
            raise InputError("A PEFT adapter fits the published models only: choose one with --model, or leave it out.")
        return read_folder(found, name if found.parent == ASSETS else found.name)
    return read_published(found.weights, found.repository, token, dtype)


def _find(name: str, token: str | None) -> Path | Snapshot:
    """Where a model is: a folder of ours, or the weights of a published one and what it is called."""
    if (ASSETS / name / "config.json").is_file() and name in PRESETS:
        return ASSETS / name
    if name in PRESETS and name != "tiny":
        raise InputError(f"No weights are published for {name}: train them, or choose nano or {HUB_MODEL}.")
    path = Path(name)
    if path.is_dir() and is_ours(path):
        return path
    if weights := find_weights(path):
        return Snapshot(path.name, weights)
    if path.is_dir():
        raise InputError(f"The folder {path.name} has no weights: it needs one of {', '.join(WEIGHTS)}.")
    if path.is_file():
        raise InputError(f"The file {path.name} holds no weights: give a .safetensors or .pt file, or a folder.")
    if name == "tiny" or (name.count("/") == 1 and not name.startswith(("/", "."))):
        return fetch_model(HUB_MODEL if name == "tiny" else name, token)
    raise InputError(f"There is no model {name!r}: give nano, a folder with weights, or a hub id such as {HUB_MODEL}.")
