"""A PEFT adapter (LoRA) by the transformers layout's names, merged into a checkpoint while it loads.

W + scale * B @ A, in float32, then cast; `scale` is lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`.
Base models of the original layout and of ours take adapters too: the names are translated, so are the rows.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.checkpoint import layouts
from csm.checkpoint.hub import Token, fetch_adapter
from csm.checkpoint.tensors import Checkpoint, Stored, check_types, open_tensors
from csm.config import ModelConfig
from csm.errors import InputError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
LOW_RANK = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
WHOLE = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?)?\.weight")
SUPPORTED = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False, "lora_bias": False}


@dataclass(frozen=True)
class Adapter:
    """An open adapter: its config, and its tensors by the names that the file gives them."""

    name: str
    config: dict[str, Any]
    tensors: Checkpoint


def open_adapter(name: str, token: Token = None) -> Adapter:
    """A folder with an adapter, or a hub id. Raises `InputError` for anything else, and for kinds other than LoRA."""
    folder = Path(name)
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith(("/", ".")):
            raise InputError(f"There is no adapter {name!r}: give a folder with {CONFIG} and {WEIGHTS}, or a hub id.")
        folder = fetch_adapter(name, token).folder
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for field, value in SUPPORTED.items():
            if config.get(field, value) != value:
                raise InputError(f"The adapter's {field} is {config[field]!r}; only {value!r} can be merged.")
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"The adapter's {CONFIG} can't be used ({error}): fetch the adapter again.") from error
    if rank < 1 or not alpha:
        raise InputError(f"The adapter's {CONFIG} has r {rank} and lora_alpha {alpha:g}, which changes nothing.")
    return Adapter(folder.name, config, open_tensors([folder / WEIGHTS]))


def merge(
    tensors: Checkpoint, adapter: Adapter, config: ModelConfig, shapes: dict[str, tuple[int, ...]], what: str
) -> Checkpoint:
    """The language model's tensors by our names, with the adapter in them. Nothing is read yet.

    Raises `InputError` naming a key of the adapter that fits nothing, or lacks its other half.
    """
    theirs = layouts.to_transformers(tensors, config)
    del theirs[layouts.TIED_COPY]
    check_types(adapter.tensors, "adapter")
    pairs: dict[str, dict[str, Stored]] = {}
    merged: Checkpoint = {}
    for key, tensor in sorted(adapter.tensors.items()):
        name = key.removeprefix(PREFIX)
        low, whole = LOW_RANK.fullmatch(name), WHOLE.fullmatch(name)
        if low and f"{low[1]}.weight" in theirs:
            pairs.setdefault(low[1], {})[low[2]] = tensor
        elif whole and f"{whole[1]}.weight" in theirs and f"{whole[1]}.weight" != layouts.FIRST_COPY:
            if tensor.shape != theirs[f"{whole[1]}.weight"].shape:
                raise InputError(f"The adapter's {key} has shape {tensor.shape}, which isn't the model's.")
            merged[f"{whole[1]}.weight"] = tensor
        else:
            raise InputError(f"The adapter's {key} fits nothing in this model: it is for another, or damaged.")
    for module, halves in pairs.items():
        name = f"{module}.weight"
        if len(halves) < 2:
            raise InputError(f"The adapter has only half of the pair lora_A and lora_B for {module}: fetch it again.")
        merged[name] = _with_pair(theirs[name], halves["A"], halves["B"], module, adapter.config)
    if not merged:
        raise InputError("The adapter has no tensors: fetch it again.")
    return layouts.from_transformers(theirs | merged, config, shapes, what)


def _with_pair(base: Stored, a: Stored, b: Stored, module: str, config: dict[str, Any]) -> Stored:
    rank = int(_for_module(config.get("rank_pattern"), module, config["r"]))
    alpha = float(_for_module(config.get("alpha_pattern"), module, config["lora_alpha"]))
    if len(base.shape) != 2 or a.shape != (rank, base.shape[1]) or b.shape != (base.shape[0], rank):
        raise InputError(
            f"The adapter's pair for {module} has shapes {a.shape} and {b.shape}; with rank {rank} this model needs "
            f"{(rank, base.shape[-1])} and {(base.shape[0], rank)}."
        )
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return Stored(base.shape, base.dtype, partial(_sum, base, a, b, scale))


def _for_module(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    """PEFT's exceptions to r and lora_alpha: the first pattern that the module's name ends in."""
    return next(
        (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)), otherwise
    )


def _sum(base: Stored, a: Stored, b: Stored, scale: float, dtype: torch.dtype) -> Tensor:
    change = b.load(torch.float32) @ a.load(torch.float32) * scale
    return change.add_(base.load(torch.float32)).to(dtype)
