"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) through PEFT: small matrices beside the attention and MLP
of backbone and depth decoder learn, the model itself stays. What is saved is an adapter of the transformers layout,
which `csm.load(model, adapter=FOLDER)` merges and PEFT puts on transformers' own CSM.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.checkpoint.adapter import CONFIG, PREFIX, WEIGHTS
from csm.checkpoint.layouts import halves_from_pairs, transformers_name
from csm.errors import InputError
from csm.model import CSM

# The same matrices by our names and by transformers'; in transformers' model Mimi has a `q_proj`, too.
TARGETS = r"(backbone|decoder)\.layers\.\d+\.(attn\.(q|k|v|output)_proj|mlp\.w[123])"
THEIR_TARGETS = (
    r"(backbone_model|depth_decoder\.model)\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)


@dataclass(frozen=True)
class LoraOptions:
    """`rank` of the matrices; what they add is scaled by `alpha` / `rank`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise InputError("A LoRA adapter needs a rank of 1 or more, an alpha above 0, and a dropout below 1.")


def add_lora(model: CSM, options: LoraOptions, seed: int = 1) -> CSM:
    """Put fresh adapters into `model`, which still computes the same; they alone are trainable from now on.

    Raises `InputError` when PEFT is not installed.
    """
    inject, config = _peft(options)
    config.target_modules = TARGETS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(config, model.requires_grad_(False))
    return model


def _peft(options: LoraOptions) -> tuple[Any, Any]:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("LoRA needs PEFT, which is not installed: run `pip install peft`.") from error
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout)  # type: ignore[arg-type]
    return inject_adapter_in_model, config


def _layers(model: CSM) -> Iterator[tuple[str, Any]]:
    """Each adapted matrix: our name of the module, and PEFT's layer in its place."""
    for name, module in model.named_modules():
        if re.fullmatch(TARGETS, name) and hasattr(module, "lora_A"):
            yield name, module


def adapter_tensors(model: CSM) -> dict[str, Tensor]:
    """The adapters of a model by the names that PEFT gives them on transformers' CSM; rows of Q and K in its order."""
    tensors: dict[str, Tensor] = {}
    for name, layer in _layers(model):
        theirs = PREFIX + transformers_name(f"{name}.weight").removesuffix(".weight")
        a, b = (layer.get_submodule(f"lora_{half}.default").weight.detach().float().cpu() for half in "AB")
        if name.endswith(("q_proj", "k_proj")):
            stack = model.config.backbone if name.startswith("backbone") else model.config.decoder
            b = halves_from_pairs(b, stack.head_dim)
        tensors[f"{theirs}.lora_A.weight"], tensors[f"{theirs}.lora_B.weight"] = a.contiguous(), b.contiguous()
    return tensors


def save_adapter(model: CSM, folder: Path, options: LoraOptions, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, whole or not at all; `base` names the model."""
    from safetensors.torch import save_file

    _, config = _peft(options)
    config.target_modules, config.base_model_name_or_path, config.inference_mode = THEIR_TARGETS, base, True
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    config.save_pretrained(str(partial))
    assert (partial / CONFIG).is_file()
    save_file(adapter_tensors(model), partial / WEIGHTS, metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


@torch.no_grad()
def merged(model: CSM) -> CSM:
    """A plain CSM that computes what the adapted one does: W + alpha / rank * B A in each matrix."""
    layers = dict(_layers(model))
    plain: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            module = name.removesuffix(".base_layer.weight")
            change = layers[module].get_delta_weight("default").to(tensor) if module in layers else 0.0
            plain[name.replace(".base_layer.", ".")] = tensor + change
    with torch.device("meta"):
        made = CSM(model.config)
    made.load_state_dict(plain, assign=True)
    return made
