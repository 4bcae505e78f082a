"""One published layout -> the other, or the same in another precision: a folder that this program and others load.

Nothing is computed but the order of some rows, so there and back is bit for bit. Tensors pass through one by one. The
exception is weights to be packed, which only this program loads.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from csm.checkpoint import layouts, mimi_keys, packed
from csm.checkpoint.configs import Json, to_json
from csm.checkpoint.find import find_model
from csm.checkpoint.folder import read_config
from csm.checkpoint.hub import Token, files_of
from csm.checkpoint.published import MIMI_FILES, Layout, Published, open_published
from csm.checkpoint.tensors import (
    INDEX,
    Checkpoint,
    open_tensors,
    shard_names,
    sharded,
    storable,
    write_index,
    write_tensors,
)
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


@dataclass(frozen=True)
class _Plan:
    """What is to be written: tensors by file, config.json, and where what may lie beside them is. `told` is what the
    files say of themselves."""

    files: dict[str, Checkpoint]
    config: Json
    beside: Path
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


def convert(
    source: str,
    target: Path,
    layout: Layout | None,
    dtype: torch.dtype | None = None,
    token: Token = None,
    weights: str | None = None,
) -> Converted:
    """Write `source`, whatever `load_model` takes of the published layouts, as the new folder `target`.

    `dtype` casts the language model; without it every tensor keeps its own. The codec is never cast: its codebooks
    decide which codes a sound has. `weights` may be "int4": the matrices of any model are packed, from bfloat16 unless
    `dtype` is given, and no layout is chosen. Raises `InputError`; then there is no `target`.
    """
    if weights not in (None, packed.KIND):
        raise InputError(f"Weights can't be packed as {weights!r}: choose {packed.KIND}.")
    if (layout is None) == (weights is None):
        raise InputError("Say either which layout to write, original or transformers, or how to pack the weights.")
    found = find_model(source, token)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already: name a new folder.")
    if isinstance(found, Path):
        if weights is None:
            raise InputError(
                f"{source} is in this project's own layout, which is the only one for its codec: nothing to do."
            )
        plan = _own_packed(found, source)
    else:
        opened = open_published(found.weights, found.repository, token)
        _check_whole(opened.csm, source)
        plan = _published_packed(opened, dtype) if layout is None else _published(opened, layout, dtype)
    parent = target.resolve().parent
    if not parent.is_dir():
        raise InputError(f"The folder {parent} does not exist: make it first.")
    if shutil.disk_usage(parent).free < plan.size + 1_000_000:
        raise InputError(f"The converted model takes {plan.size / 1e9:.2f} GB, and {parent} has less: make room first.")
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".csm-convert-") as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            _write(made, plan)
            if target.exists():
                target.rmdir()
            made.rename(target)
    except OSError as error:
        raise InputError(f"The converted model can't be written to {target}: {error.strerror}.") from error
    return Converted({name: (target / name).stat().st_size for name in plan.files})


def _check_whole(language: Checkpoint, source: str) -> None:
    if packed.is_packed(language):
        raise InputError(f"{source} holds packed weights: convert the model that they were made of.")


def _published(opened: Published, layout: Layout, dtype: torch.dtype | None) -> _Plan:
    files = _files(opened, layout, dtype)
    return _Plan(files, _config(opened, next(iter(next(iter(files.values())).values())).dtype), opened.folder)


def _published_packed(opened: Published, dtype: torch.dtype | None) -> _Plan:
    """The original layout with packed matrices: as they are packed when it is loaded so."""
    dtype = dtype or torch.bfloat16
    files = {"model.safetensors": packed.pack(opened.csm, dtype), MIMI_FILES[0]: storable(opened.mimi())}
    return _Plan(files, _config(opened, dtype), opened.folder, packed.TOLD)


def _own_packed(folder: Path, source: str) -> _Plan:
    """A folder of ours with packed matrices."""
    config = read_config(folder)
    tensors = open_tensors(files_of(folder / INDEX))
    language = {name.removeprefix("csm."): tensor for name, tensor in tensors.items() if name.startswith("csm.")}
    _check_whole(language, source)
    whole = {f"csm.{name}": tensor for name, tensor in packed.pack(language).items()}
    whole |= {name: tensor for name, tensor in tensors.items() if name.startswith("codec.")}
    return _Plan({shard_names(1)[0]: whole}, config.to_dict(), folder, packed.TOLD)


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


def _config(opened: Published, written: torch.dtype) -> Json:
    config = to_json(opened.config, opened.given) | {"torch_dtype": str(written).removeprefix("torch.")}
    config.pop("dtype", None)
    return config


def _write(folder: Path, plan: _Plan) -> None:
    for name, tensors in plan.files.items():
        write_tensors(folder / name, tensors, plan.told)
    if "model.safetensors" not in plan.files:
        write_index(folder, plan.files)
    (folder / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n")
    for name in BESIDE:
        if (plan.beside / name).is_file():
            shutil.copy(plan.beside / name, folder / name)
