"""Training runs -> the folder that `csm.load` reads: the newest saved codec and language model, packed together."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from csm.checkpoint import fill, find_model, save_folder
from csm.checkpoint.configs import to_json
from csm.checkpoint.published import MIMI_FILES, open_published, tokenizer_file
from csm.checkpoint.tensors import Stored, storable, write_tensors
from csm.codec.spectral import SpectralCodec
from csm.config import Environment, ModelConfig, SpectralConfig
from csm.errors import InputError
from csm.model import CSM


def run_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a run's `state.pt`. Raises `InputError` when the run has saved nothing yet."""
    state = Path(folder) / "state.pt"
    if not state.exists():
        raise InputError(f"The run in {Path(folder).name} has saved nothing yet: train it first.")
    return torch.load(state, weights_only=True, map_location="cpu")["module"]


def light_codec(config: ModelConfig) -> SpectralConfig:
    """The codec's config. Raises `InputError` when it is Mimi, which this recipe does not train."""
    if not isinstance(config.codec, SpectralConfig):
        raise InputError("This recipe trains the light codec; the config asks for Mimi.")
    return config.codec


def trained_codec(folder: Path, config: ModelConfig) -> SpectralCodec:
    """The codec of a codec run, in evaluation mode."""
    codec = SpectralCodec(light_codec(config))
    weights = run_weights(folder)
    codec.load_state_dict({k.removeprefix("codec."): v for k, v in weights.items() if k.startswith("codec.")})
    return codec.eval()


def export(codec_run: Path, lm_run: Path, folder: Path, config: ModelConfig) -> None:
    """Write the model of two runs into `folder`."""
    model = CSM(config)
    model.load_state_dict(run_weights(lm_run))
    codec: nn.Module = trained_codec(codec_run, config)
    save_folder(Path(folder), model, codec)


def export_published(lm_run: Path, config: ModelConfig, source: str, folder: Path) -> None:
    """Write a run of a shape whose codec is Mimi in the original published layout, as the new folder `folder`.

    Mimi and the tokenizer are those of `source`, the published model whose codes it learned from. Raises `InputError`.
    """
    token = Environment.read().token
    found = find_model(source, token)
    if isinstance(found, Path):
        raise InputError(f"{source} has no Mimi: give --model the published model that made the codes.")
    if folder.exists():
        raise InputError(f"{folder} exists already: name a new folder.")
    weights = run_weights(lm_run)
    with torch.device("meta"):
        model = CSM(config)
    fill(model, weights, "run")
    opened = open_published(found.weights, found.repository, token)
    if (theirs := opened.config.num_codebooks) != config.num_codebooks:
        raise InputError(f"{source} has {theirs} codes a frame, and this model {config.num_codebooks}: not its codec.")
    mimi = storable(opened.mimi())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        write_tensors(made / "model.safetensors", {name: Stored.of(t) for name, t in weights.items()})
        write_tensors(made / MIMI_FILES[0], mimi)
        described = to_json(replace(config, codec=opened.config.codec))
        (made / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        shutil.copy(tokenizer_file(opened.folder, token), made / "tokenizer.json")
        made.rename(folder)
