"""Files <-> weights: the embedded model's folder, and the published models, local or from the hub.

`load_model` finds out what a name means; each layout has a file of its own. Every load is strict: a missing or
unknown key is an error that names it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from csm.assets import ASSETS
from csm.checkpoint.adapter import open_adapter
from csm.checkpoint.convert import convert
from csm.checkpoint.find import find_model
from csm.checkpoint.folder import INDEX, read_folder, save_folder
from csm.checkpoint.hub import HUB_MIMI, HUB_MODEL, HUB_TOKENIZER
from csm.checkpoint.info import describe
from csm.checkpoint.published import read_published
from csm.checkpoint.tensors import Loaded, fill, open_tensors
from csm.config import Environment

__all__ = [
    "HUB_MIMI",
    "HUB_MODEL",
    "HUB_TOKENIZER",
    "INDEX",
    "Loaded",
    "convert",
    "describe",
    "fill",
    "find_model",
    "load_model",
    "open_tensors",
    "save_folder",
]


def load_model(
    name: str, dtype: torch.dtype = torch.float32, adapter: str | None = None, packed_too: bool = False
) -> Loaded:
    """A preset, a local folder or file in any of the three layouts, or a hub id. On the CPU.

    `dtype` is the published models' language model's; codecs and our own folders, which are small, stay float32.
    `adapter` is a PEFT adapter, a folder or a hub id, to merge into the language model. Weights that are packed already
    only speak: they are refused unless they are welcome, too. Raises `InputError` with one sentence for anything that
    can't be loaded; nothing is half loaded.
    """
    token = Environment.read().token
    found = find_model(name, token)
    opened = open_adapter(adapter, token) if adapter else None
    if isinstance(found, Path):
        return read_folder(found, name if found.parent == ASSETS else found.name, opened, packed_too)
    return read_published(found.weights, found.repository, token, dtype, opened, packed_too)
