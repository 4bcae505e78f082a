"""The published layouts -> a model ready for the generator, from whichever of their files a folder has.

The transformers layout comes first where a folder has both: it has Mimi inside, so nothing else is needed. In the
original layout Mimi is a file in moshi's names, beside the weights or from its own repository on the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from csm.checkpoint import layouts, mimi_keys, packed
from csm.checkpoint.adapter import Adapter, merge
from csm.checkpoint.configs import Json, model_config, read_config, recognised
from csm.checkpoint.hub import HUB_MIMI, HUB_TOKENIZER, WEIGHTS, Token, complete, fetch_file, files_of, weight_map
from csm.checkpoint.tensors import (
    Checkpoint,
    Loaded,
    check_keys,
    check_shapes,
    check_types,
    fill,
    open_tensors,
    shapes_of,
    told_of,
)
from csm.codec import build_codec
from csm.config import RELEASES, MimiConfig, ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.text import LlamaTokenizer

Layout = Literal["original", "transformers"]

MIMI_FILES = ("mimi.safetensors", HUB_MIMI[1])
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".index.json")


@dataclass
class Published:
    """An open checkpoint: the tensors by our names and moshi's, none read yet, and what else is known of it."""

    layout: Layout
    files: list[Path]
    config: ModelConfig
    given: Json | None
    csm: Checkpoint
    mimi: Callable[[], Checkpoint] = field(repr=False)

    @property
    def folder(self) -> Path:
        return self.files[0].parent


def find_weights(path: Path) -> Path | None:
    """The weights that a folder or a file name stands for: an index or a single file; None if there are none."""
    if path.is_file():
        return path if path.name.endswith(SUFFIXES) else None
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    return next((file for file in found if complete(file)), found[0] if found else None)


def open_published(weights: Path, name: str, token: Token) -> Published:
    """Open and check a checkpoint in either layout: every key, type and shape. Raises `InputError`, nothing read."""
    files = files_of(weights)
    given = read_config(weights.parent)
    config = None if given is None else model_config(given)
    tensors = open_tensors(files)
    config = config or _recognised(tensors)
    if weights.suffix == ".json":
        _check_index(weights, set(tensors))
    what = f"checkpoint {name}"
    with torch.device("meta"):
        shapes = shapes_of(CSM(config))
    assert isinstance(config.codec, MimiConfig)
    if any(key.startswith(("backbone_model.", "depth_decoder.", layouts.CODEC)) for key in tensors):
        codec = {key.removeprefix(layouts.CODEC): t for key, t in tensors.items() if key.startswith(layouts.CODEC)}
        language = {key: tensor for key, tensor in tensors.items() if not key.startswith(layouts.CODEC)}
        csm = layouts.from_transformers(language, config, shapes, what)
        mimi = mimi_keys.from_transformers(codec, config.codec, mimi_shapes(config.codec), f"{what}'s codec")
        return Published("transformers", files, config, given, csm, lambda: mimi)
    if packed.is_packed(tensors):
        packed.check_packed(tensors, config, told_of(files[0]), what)
    else:
        check_keys(set(tensors), set(shapes), what)
        check_types(tensors, what)
        check_shapes(tensors, shapes, what)
    return Published("original", files, config, given, tensors, partial(_mimi_beside, weights.parent, config, token))


def _recognised(tensors: Checkpoint) -> ModelConfig:
    ours = {layouts.our_name(key): tensor.shape for key, tensor in tensors.items()}
    if config := recognised(ours):
        return config
    raise InputError(
        f"There is no config.json beside the weights, and they have the shapes of neither "
        f"{' nor '.join(made.repository for made in RELEASES)}: fetch the model's config.json too."
    )


def _check_index(index: Path, found: set[str]) -> None:
    listed = set(weight_map(index))
    if odd := sorted(listed ^ found):
        raise InputError(f"The index {index.name} and its files disagree about {odd[0]}: fetch the model again.")


def mimi_shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of moshi's Mimi, by its names."""
    with torch.device("meta"):
        return shapes_of(build_codec(config).module)


def _mimi_beside(folder: Path, config: ModelConfig, token: Token) -> Checkpoint:
    assert isinstance(config.codec, MimiConfig)
    file = next((folder / name for name in MIMI_FILES if (folder / name).is_file()), None)
    tensors = open_tensors([file or fetch_file(*HUB_MIMI, token)])
    return mimi_keys.from_moshi(tensors, mimi_shapes(config.codec), "Mimi checkpoint")


def tokenizer_file(folder: Path, token: Token) -> Path:
    """`tokenizer.json` beside the weights, else Llama 3's from the hub."""
    beside = folder / "tokenizer.json"
    return beside if beside.is_file() else fetch_file(*HUB_TOKENIZER, token)


def read_tokenizer(file: Path, text_vocab_size: int) -> LlamaTokenizer:
    """Raises `InputError` for a file that is none, or whose ids the model doesn't have."""
    try:
        tokenizer = LlamaTokenizer(file)
        ids = tokenizer.encode("[0]Hello.")
    except Exception as error:  # the tokenizers library has no exceptions of its own
        raise InputError(f"The tokenizer file {file.name} can't be read ({error}): fetch it again.") from error
    if not all(isinstance(number, int) and 0 <= number < text_vocab_size for number in ids):
        raise InputError(
            f"The tokenizer file {file.name} doesn't go with this model, which has {text_vocab_size} text ids and "
            "needs Llama 3's <|begin_of_text|> and <|end_of_text|>: fetch the model's own."
        )
    return tokenizer


def read_published(
    weights: Path,
    name: str,
    token: Token,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    packed_too: bool = False,
) -> Loaded:
    """Load a checkpoint in either layout: the language model in `dtype`, or, if they are welcome, its packed weights as
    they are; the codec in float32."""
    opened = open_published(weights, name, token)
    what = f"checkpoint {name}"
    if in_four_bits := packed.is_packed(opened.csm):
        packed.check_use(name, packed_too, adapter is not None)
    tokenizer = read_tokenizer(tokenizer_file(opened.folder, token), opened.config.text_vocab_size)
    with torch.device("meta"):
        model, codec = CSM(opened.config), build_codec(opened.config.codec)
    tensors = opened.csm
    if adapter:
        tensors = merge(tensors, adapter, opened.config, shapes_of(model), what)
        name = f"{name} with {adapter.name}"
    fill(codec.module, opened.mimi(), f"{what}'s codec", torch.float32)
    if in_four_bits:
        return Loaded(name, packed.read_packed(tensors, opened.config), codec, tokenizer)
    fill(model, tensors, what, dtype)
    return Loaded(name, model, codec, tokenizer)
