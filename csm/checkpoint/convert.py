"""One published layout -> the other, or the same in another precision: a folder that this program and others load.

Nothing is computed but the order of some rows, so there and back is bit for bit. Tensors pass through one by one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from csm.checkpoint import layouts, mimi_keys
from csm.checkpoint.configs import to_json
from csm.checkpoint.find import find_model
from csm.checkpoint.hub import Token
from csm.checkpoint.published import MIMI_FILES, Layout, Published, open_published
from csm.checkpoint.tensors import Checkpoint, shard_names, sharded, storable, write_index, write_tensors
from csm.config import MimiConfig
from csm.errors import InputError

SHARD_BYTES = 5_000_000_000
# What may lie beside the weights and is as true of the converted ones.
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "LICENSE",
)


@dataclass(frozen=True)
class Converted:
    """What was written: `files` with tensors, by name, and their `size` in bytes."""

    files: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.files.values())


def convert(
    source: str, target: Path, layout: Layout, dtype: torch.dtype | None = None, token: Token = None
) -> Converted:
    """Write `source`, whatever `load_model` takes of the published layouts, as the new folder `target`.

    `dtype` casts the language model; without it every tensor keeps its own. The codec is never cast: its codebooks
    decide which codes a sound has. Raises `InputError`; then there is no `target`.
    """
    found = find_model(source, token)
    if isinstance(found, Path):
        raise InputError(
            f"{source} is in this project's own layout, which is the only one for its codec: nothing to do."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already: name a new folder.")
    opened = open_published(found.weights, found.repository, token)
    files = _files(opened, layout, dtype)
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    parent = target.resolve().parent
    if not parent.is_dir():
        raise InputError(f"The folder {parent} does not exist: make it first.")
    if shutil.disk_usage(parent).free < size + 1_000_000:
        raise InputError(f"The converted model takes {size / 1e9:.2f} GB, and {parent} has less: make room first.")
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".csm-convert-") as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            _write(made, opened, files)
            if target.exists():
                target.rmdir()
            made.rename(target)
    except OSError as error:
        raise InputError(f"The converted model can't be written to {target}: {error.strerror}.") from error
    return Converted({name: (target / name).stat().st_size for name in files})


def _files(opened: Published, layout: Layout, dtype: torch.dtype | None) -> dict[str, Checkpoint]:
    """The tensors of each file to write, by the layout's own names."""
    csm = {name: replace(tensor, dtype=dtype or tensor.dtype) for name, tensor in opened.csm.items()}
    mimi = storable(opened.mimi())
    if layout == "original":
        return {"model.safetensors": csm, MIMI_FILES[0]: mimi}
    assert isinstance(opened.config.codec, MimiConfig)
    codec = mimi_keys.to_transformers(mimi, opened.config.codec)
    whole = layouts.to_transformers(csm, opened.config)
    whole |= {layouts.CODEC + name: tensor for name, tensor in codec.items()}
    shards = sharded(whole, SHARD_BYTES)
    if len(shards) == 1:
        return {"model.safetensors": whole}
    return dict(zip(shard_names(len(shards)), shards, strict=True))


def _write(folder: Path, opened: Published, files: dict[str, Checkpoint]) -> None:
    for name, tensors in files.items():
        write_tensors(folder / name, tensors)
    if "model.safetensors" not in files:
        write_index(folder, files)
    written = next(iter(next(iter(files.values())).values())).dtype
    config = to_json(opened.config, opened.given) | {"torch_dtype": str(written).removeprefix("torch.")}
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in BESIDE:
        if (opened.folder / name).is_file():
            shutil.copy(opened.folder / name, folder / name)
