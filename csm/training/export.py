"""Training runs -> the folder that `csm.load` reads: the newest saved codec and language model, packed together."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from csm.checkpoint import save_folder
from csm.codec.spectral import SpectralCodec
from csm.config import ModelConfig, SpectralConfig
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
