"""Our own folder, `config.json` and safetensors shards under 10 MB: what ships with the program, what training writes.

The shards are listed in `model.safetensors.index.json` (the hub's usual index); `csm.*` are the language model's
tensors and `codec.*` the codec's.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from csm.checkpoint import packed
from csm.checkpoint.adapter import Adapter, merge
from csm.checkpoint.hub import files_of
from csm.checkpoint.tensors import (
    INDEX,
    Checkpoint,
    Loaded,
    check_keys,
    fill,
    open_tensors,
    shapes_of,
    shard_names,
    sharded,
    told_of,
    write_index,
)
from csm.codec import build_codec
from csm.config import ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.text import ByteTokenizer

SHARD_BYTES = 9_000_000


def save_folder(folder: Path, model: CSM, codec: nn.Module) -> None:
    """Write both networks, in float16 with the quantiser in float32, as shards that stay under 10 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"csm.{name}": tensor.half() for name, tensor in model.state_dict().items()}
    for name, tensor in codec.state_dict().items():
        tensors[f"codec.{name}"] = tensor if name.startswith("quantizer.") else tensor.half()
    shards = sharded({name: tensor.contiguous() for name, tensor in tensors.items()}, SHARD_BYTES)
    files = dict(zip(shard_names(len(shards)), shards, strict=True))
    for stale in folder.glob("model-*.safetensors"):
        stale.unlink()
    for file, shard in files.items():
        save_file(shard, folder / file, metadata={"format": "pt"})
    write_index(folder, files)
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


def read_folder(folder: Path, name: str, adapter: Adapter | None = None, packed_too: bool = False) -> Loaded:
    """Both networks of a folder of ours, in float32, `adapter` merged into it; or, if they are welcome, its packed
    weights as they are. Raises `InputError`."""
    config, files = read_config(folder), files_of(folder / INDEX)
    tensors = open_tensors(files)

    def part(prefix: str) -> Checkpoint:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    language = part("csm.")
    codec = build_codec(config.codec)
    if packed.is_packed(language):
        packed.check_use(name, packed_too, adapter is not None)
        packed.check_packed(language, config, told_of(files[0]), "checkpoint")
        fill(codec.module, part("codec."), "checkpoint's codec")
        return Loaded(name, packed.read_packed(language, config, torch.float32), codec, ByteTokenizer())
    with torch.device("meta"):
        model = CSM(config)
    if adapter:
        check_keys(set(language), set(shapes_of(model)), "checkpoint")
        language = merge(language, adapter, config, shapes_of(model), "checkpoint")
        name = f"{name} with {adapter.name}"
    halves = not adapter and all(tensor.dtype == torch.float16 for tensor in language.values())
    fill(model, language, "checkpoint")
    fill(codec.module, part("codec."), "checkpoint's codec")
    return Loaded(name, model, codec, ByteTokenizer(), torch.float16 if halves else None)
