"""Files -> tensors -> modules: lazy, lean, strict. What every layout stands on.

A checkpoint is a dictionary of names to `Stored` tensors, none of which is read before it is asked for. Renaming
keys, permuting rows, merging an adapter make new dictionaries; `fill` and `write_tensors` read one tensor at a time.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from csm.codec import Codec
from csm.errors import InputError
from csm.model import CSM
from csm.text import Tokenizer

INDEX = "model.safetensors.index.json"
PIECE_BYTES = 64_000_000  # so much of a file is in memory while a tensor is cast
KINDS = {  # what safetensors calls them
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}


class Loaded:
    """What a model consists of, ready for the generator. `stored` is the precision that holds all of the language
    model's weights exactly, where a smaller one than theirs does."""

    def __init__(
        self, name: str, model: CSM, codec: Codec, tokenizer: Tokenizer, stored: torch.dtype | None = None
    ) -> None:
        self.name, self.model, self.codec, self.tokenizer, self.stored = name, model, codec, tokenizer, stored


@dataclass(frozen=True)
class Stored:
    """A tensor that is somewhere else. `load(dtype)` brings it here; without a cast it may share the file's memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[torch.dtype], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        """A tensor that is here already."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.to)

    def then(self, change: Callable[[Tensor], Tensor]) -> Stored:
        """The same tensor with `change`, which keeps shape and type, applied to it when it is loaded."""
        return Stored(self.shape, self.dtype, lambda dtype: change(self.load(dtype)))

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


Checkpoint = dict[str, Stored]


def open_tensors(files: list[Path]) -> Checkpoint:
    """All tensors of some safetensors files, or of one pickle with nothing but tensors in it, none of them read yet.

    Raises `InputError` for a file that is missing, cut short, twice the owner of a key, or not what it should be.
    """
    tensors: Checkpoint = {}
    for file in files:
        found = _open_pickle(file) if file.suffix in (".pt", ".pth", ".bin") else _open_safetensors(file)
        if twice := sorted(set(tensors) & set(found)):
            raise InputError(f"Two weight files hold {twice[0]}; {file.name} is one of them: fetch the model again.")
        tensors |= found
    return tensors


def _open_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="np"):  # the library's own checks; torch's would map more than memory may hold
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"The weight file {file.name} can't be read ({error}): fetch it again.") from error
    header.pop("__metadata__", None)
    tensors: Checkpoint = {}
    for name, entry in header.items():
        if entry["dtype"] not in KINDS:
            raise InputError(f"The weight file {file.name} holds {name} as {entry['dtype']}: convert it first.")
        shape, dtype, begin = tuple(entry["shape"]), KINDS[entry["dtype"]], 8 + length + entry["data_offsets"][0]
        tensors[name] = Stored(shape, dtype, partial(_load, shape, partial(_part, file, name, shape, dtype, begin)))
    return tensors


def _part(
    file: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, begin: int, start: int, stop: int | None
) -> Tensor:
    """Rows of a safetensors file's tensor, which begins at byte `begin`: all of them mapped, if that can be, or some
    read. A file that is larger than memory is not mapped by every system."""
    if stop is None:
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)
        except RuntimeError:
            stop = shape[0] if shape else 1
    row = prod(shape[1:]) * dtype.itemsize
    rows = min(stop, shape[0]) - start if shape else 1
    numbers = torch.empty(rows * row, dtype=torch.uint8)
    with open(file, "rb") as opened:
        opened.seek(begin + start * row)
        opened.readinto(numbers.numpy().data)
    return numbers.view(dtype).view((rows, *shape[1:]) if shape else ())


def _load(shape: tuple[int, ...], part: Callable[[int, int | None], Tensor], dtype: torch.dtype) -> Tensor:
    """A tensor of a file: as it lies there, or cast piece by piece, of which each leaves memory before the next."""
    first = part(0, 1)
    if first.dtype == dtype or not shape:
        return part(0, None).to(dtype)
    tensor = torch.empty(shape, dtype=dtype)
    step = max(1, PIECE_BYTES // max(1, first.nbytes))
    for start in range(0, shape[0], step):
        tensor[start : start + step] = part(start, start + step)
    return tensor


def _open_pickle(file: Path) -> Checkpoint:
    def mapped() -> dict[str, Tensor]:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)

    try:
        tensors = mapped()
    except pickle.UnpicklingError as error:
        raise InputError(
            f"The weight file {file.name} is damaged or holds something other than tensors; none of it was run: get "
            "it from its source as safetensors."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise InputError(f"The weight file {file.name} can't be read: fetch it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"The weight file {file.name} is no dictionary of tensors: get the original file.")

    def part(name: str, start: int, stop: int | None) -> Tensor:
        tensor = mapped()[name]
        return tensor[start:stop] if tensor.dim() else tensor

    return {
        str(name): Stored(tuple(tensor.shape), tensor.dtype, partial(_load, tuple(tensor.shape), partial(part, name)))
        for name, tensor in tensors.items()
    }


def storable(tensors: Checkpoint) -> Checkpoint:
    """`tensors` in types of weights: one of moshi's buffers is a flag, which both libraries write as a number."""
    return {
        name: tensor if tensor.dtype in WEIGHT_TYPES else replace(tensor, dtype=torch.float32)
        for name, tensor in tensors.items()
    }


def check_types(tensors: Checkpoint, what: str) -> None:
    """Raise `InputError` if a tensor holds numbers of a kind that no weights are published in."""
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in WEIGHT_TYPES:
            raise InputError(
                f"The {what}'s {name} holds numbers that are neither float32, float16 nor bfloat16: convert it first."
            )


def check_keys(found: set[str], expected: set[str], what: str) -> None:
    """Raise `InputError` naming the first key that is missing or too many."""
    if missing := sorted(expected - found):
        raise InputError(f"The {what} lacks {len(missing)} tensors, the first of them {missing[0]}.")
    if unknown := sorted(found - expected):
        raise InputError(f"The {what} has {len(unknown)} tensors that the model doesn't know, the first {unknown[0]}.")


def check_shapes(tensors: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise `InputError` naming the first tensor whose shape is not what the config asks for."""
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise InputError(
                f"The {what}'s {name} has shape {tensor.shape}; its config asks for {tuple(shapes[name])}."
            )


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The tensors that a module needs, by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor | Stored], what: str, dtype: torch.dtype | None = None
) -> None:
    """Put `tensors` into `module`, all of them and nothing else, cast to `dtype` or to the module's own.

    Cast one by one and assigned, so at no time is there a second copy of the whole. Raises `InputError` naming an odd
    key.
    """
    stored = {name: Stored.of(t) if isinstance(t, Tensor) else t for name, t in tensors.items()}
    expected = module.state_dict()
    check_keys(set(stored), set(expected), what)
    check_shapes(stored, shapes_of(module), what)
    filled = {name: stored[name].load(dtype or tensor.dtype) for name, tensor in expected.items()}
    module.load_state_dict(filled, assign=True)


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


def sharded(tensors: Mapping[str, T], limit: int) -> list[dict[str, T]]:
    """The tensors in their order, cut into parts of at most `limit` bytes; one that is larger has its own part."""
    shards: list[dict[str, T]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """The file names that the hub's libraries give to `count` shards."""
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(folder: Path, files: Mapping[str, Mapping[str, Sized]]) -> None:
    """`model.safetensors.index.json`, the hub's usual index: which of `files` holds which tensor."""
    places = {key: file for file, tensors in files.items() for key in tensors}
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def told_of(file: Path) -> dict[str, str]:
    """What a safetensors file, which was opened before, says of itself."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="np") as opened:
        return opened.metadata() or {}


def write_tensors(file: Path, tensors: Checkpoint, told: Mapping[str, str] | None = None) -> None:
    """A safetensors file, written tensor by tensor in each one's own type; one tensor is in memory at a time. `told` is
    what it says of itself."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(told or {})}}
    end = 0
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # so that mapped weights lie as arithmetic likes them
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            out.write(tensor.load(tensor.dtype).contiguous().flatten().view(torch.uint8).numpy().data)
