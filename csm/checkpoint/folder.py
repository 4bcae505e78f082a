"""Our own folder, `config.json` and safetensors shards under 10 MB: what ships with the program, what training writes.

The shards are listed in `model.safetensors.index.json` (the hub's usual index); `csm.*` are the language model's
tensors and `codec.*` the codec's.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from csm.checkpoint.tensors import Checkpoint, Loaded, fill, open_tensors
from csm.codec import build_codec
from csm.config import ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.text import ByteTokenizer

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 9_000_000


def save_folder(folder: Path, model: CSM, codec: nn.Module) -> None:
    """Write both networks, in float16 with the quantiser in float32, as shards that stay under 10 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"csm.{name}": tensor.half() for name, tensor in model.state_dict().items()}
    for name, tensor in codec.state_dict().items():
        tensors[f"codec.{name}"] = tensor if name.startswith("quantizer.") else tensor.half()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    for stale in folder.glob("model-*.safetensors"):
        stale.unlink()
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")


def is_ours(folder: Path) -> bool:
    """Whether a folder was written by `save_folder`: a published model's index has other names."""
    try:
        return any(name.startswith("csm.") for name in json.loads((folder / INDEX).read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_config(folder: Path) -> ModelConfig:
    """The shape of a folder of ours. Raises `InputError`."""
    try:
        return ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The folder {folder.name} is no complete model of this project: {error}.") from error


def read_folder(folder: Path, name: str) -> Loaded:
    """Both networks of a folder of ours, in float32. Raises `InputError`."""
    config = read_config(folder)
    try:
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The folder {folder.name} is no complete model of this project: {error}.") from error
    tensors = open_tensors([folder / file for file in files])

    def part(prefix: str) -> Checkpoint:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    with torch.device("meta"):
        model = CSM(config)
    fill(model, part("csm."), "checkpoint")
    codec = build_codec(config.codec)
    fill(codec.module, part("codec."), "checkpoint's codec")
    return Loaded(name, model, codec, ByteTokenizer())
