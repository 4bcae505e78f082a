"""Files <-> weights: the embedded model's folder, and the published models, local or from the hub.

`load_model` finds out what a name means; each layout has a file of its own. Every load is strict: a missing or
unknown key is an error that names it.
"""

from __future__ import annotations

from pathlib import Path

from csm.checkpoint.folder import INDEX, read_folder, save_folder
from csm.checkpoint.hub import HUB_MIMI, HUB_MODEL, HUB_TOKENIZER, fetch_model
from csm.checkpoint.published import read_original
from csm.checkpoint.tensors import Loaded, fill, read_tensors
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
    "read_tensors",
    "save_folder",
]


def load_model(name: str) -> Loaded:
    """A preset that ships here, a local folder of ours, or a hub id in the original layout. Float32, on the CPU.

    Raises `InputError` with one sentence for anything that can't be loaded; nothing is half loaded.
    """
    token = Environment.read().token
    if (ASSETS / name / "config.json").is_file() and name in PRESETS:
        return read_folder(ASSETS / name, name)
    if name in PRESETS and name != "tiny":
        raise InputError(f"No weights are published for {name}: train them, or choose nano or {HUB_MODEL}.")
    path = Path(name)
    if path.is_dir() and (path / INDEX).is_file():
        return read_folder(path, path.name)
    if path.is_dir() and (path / "model.safetensors").is_file():
        return read_original(path / "model.safetensors", path.name, token)
    if name == "tiny" or (name.count("/") == 1 and not path.exists() and not name.startswith(("/", "."))):
        repository = HUB_MODEL if name == "tiny" else name
        snapshot = fetch_model(repository, token)
        return read_original(snapshot.weights, snapshot.repository, token)
    raise InputError(f"There is no model {name!r}: give nano, a folder with weights, or a hub id such as {HUB_MODEL}.")
