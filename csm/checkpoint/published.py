"""The published 1B model -> a model ready for the generator."""

from __future__ import annotations

from pathlib import Path

import torch

from csm.checkpoint.hub import HUB_MIMI, HUB_TOKENIZER, fetch_file
from csm.checkpoint.tensors import Loaded, fill, read_tensors
from csm.codec import build_codec
from csm.config import PRESETS
from csm.model import CSM
from csm.text import LlamaTokenizer


def read_original(weights: Path, name: str, token: str | None) -> Loaded:
    """The published 1B model in its original layout, with Mimi and the tokenizer from their own repositories."""
    config = PRESETS["tiny"]
    with torch.device("meta"):
        model = CSM(config)
    fill(model, read_tensors([weights]), f"checkpoint {name}")
    codec = build_codec(config.codec)
    fill(codec.module, read_tensors([fetch_file(*HUB_MIMI, token)]), "Mimi checkpoint")
    return Loaded(name, model, codec, LlamaTokenizer(fetch_file(*HUB_TOKENIZER, token)))
