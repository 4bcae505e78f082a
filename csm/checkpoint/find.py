"""What a model's name means: a preset that ships here, something on this machine, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from csm.assets import ASSETS
from csm.checkpoint.folder import is_ours
from csm.checkpoint.hub import HUB_MODEL, Snapshot, Token, fetch_model
from csm.checkpoint.published import WEIGHTS, find_weights
from csm.config import PRESETS, RELEASES
from csm.errors import InputError


def find_model(name: str, token: Token = None) -> Path | Snapshot:
    """Where a model is: a folder of ours, or the weights of a published one and what it is called.

    A hub id is downloaded if need be. Raises `InputError` when the name means nothing.
    """
    if (ASSETS / name / "config.json").is_file() and name in PRESETS:
        return ASSETS / name
    published = {made.preset: made.repository for made in RELEASES}
    if name in PRESETS and name not in published:
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
    if name in published or (name.count("/") == 1 and not name.startswith(("/", "."))):
        return fetch_model(published.get(name, name), token)
    raise InputError(f"There is no model {name!r}: give nano, a folder with weights, or a hub id such as {HUB_MODEL}.")
