"""What is trained: shapes that have a name, shapes in JSON files, and the `config.json` in which a run keeps its own.

`train codes`, `train lm` and `train export` read there what the steps before them made, so it is said only once.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from csm.config import PRESETS, CodecConfig, MimiConfig, ModelConfig, SpectralConfig
from csm.errors import InputError
from csm.files import whole

CONFIG = "config.json"
CODECS: dict[str, CodecConfig] = {
    "nano": PRESETS["nano"].codec,
    "mimi": MimiConfig(),  # as published, for a GPU
    "mimi-small": MimiConfig(
        num_codebooks=8,
        codebook_size=1_024,
        total_codebooks=8,
        dim=128,
        filters=16,
        codebook_dim=128,
        layers=2,
        heads=4,
        mlp_dim=512,
    ),
}
KINDS: dict[str, type[CodecConfig]] = {"mimi": MimiConfig, "spectral": SpectralConfig}
NO_CODES = 3  # ids of the model's audio vocabulary that are no code of the codec


def codec_shape(name: str) -> CodecConfig:
    """One of `CODECS`, or a JSON file with the fields of a codec's config. Raises `InputError` naming what is wrong."""
    if name in CODECS:
        return CODECS[name]
    if not Path(name).is_file():
        raise InputError(f"There is no codec {name!r}: choose {', '.join(CODECS)}, or a JSON file with its sizes.")
    return _codec(Path(name))


def model_shape(name: str) -> ModelConfig:
    """A preset, or a JSON file of a `ModelConfig`, as every folder that `export` wrote has one. Raises `InputError`."""
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise InputError(f"There is no shape {name!r}: choose {', '.join(PRESETS)}, or the config.json of a model.")
    return _model(Path(name))


def with_codec(config: ModelConfig, codec: CodecConfig) -> ModelConfig:
    """The same transformers for the codes of `codec`. Raises `InputError` for a pair that no layout can hold."""
    if config.tokenizer == "llama3" and not isinstance(codec, MimiConfig):
        raise InputError("A model with Llama 3's tokenizer speaks through Mimi, and these codes are another codec's.")
    return replace(config, codec=codec, audio_vocab_size=codec.codebook_size + NO_CODES)


def keep_shape(folder: Path, config: CodecConfig | ModelConfig, write: bool = True) -> None:
    """Write into `folder` what is trained there, unless another process does. Raises `InputError` when it is something
    else already."""
    file = folder / CONFIG
    if file.is_file() and (_model(file) if isinstance(config, ModelConfig) else _codec(file)) != config:
        raise InputError(
            f"The folder {folder.name} was begun with another shape (its {CONFIG}): give the settings it was begun "
            "with, or another folder."
        )
    if not write:
        return
    make_folder(folder)
    with whole(file) as part:
        part.write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make `folder` if it isn't there. Raises `InputError` when that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(f"The folder {folder} can't be written to ({error.strerror}): choose another.") from error


def kept_codec(folder: Path) -> CodecConfig:
    """The codec that is trained in `folder`, or that made the codes there. Raises `InputError`."""
    return _codec(_kept(folder))


def kept_model(folder: Path) -> ModelConfig:
    """The language model that is trained in `folder`. Raises `InputError`."""
    return _model(_kept(folder))


def _kept(folder: Path) -> Path:
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"The folder {folder} has no {CONFIG} that says what is in it: give the command that makes it first, or, "
            "if that was long ago, again."
        )
    return folder / CONFIG


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The file {_named(file)} can't be read ({error}): write it as JSON.") from error


def _codec(file: Path) -> CodecConfig:
    values = _read(file)
    try:
        config = KINDS[values.get("kind", "mimi")](**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"The file {_named(file)} describes no codec ({error}): correct it.") from error
    _check_codec(config, _named(file))
    return config


def _model(file: Path) -> ModelConfig:
    values = _read(file)
    try:
        config = ModelConfig.from_dict(values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"The file {_named(file)} describes no language model ({error}): correct it.") from error
    name = _named(file)
    _check_sizes(config, name)
    _check_codec(config.codec, name)
    for part, stack in (("backbone", config.backbone), ("decoder", config.decoder)):
        if stack.heads % stack.kv_heads:
            raise InputError(f"In {name}, the {part}'s heads are no multiple of its kv_heads: change one of them.")
        if stack.head_width is None and stack.dim % (2 * stack.heads):
            raise InputError(f"In {name}, the {part}'s dim is no even multiple of its heads: change one of them.")
    if config.tokenizer not in ("bytes", "llama3"):
        raise InputError(f"In {name}, tokenizer is {config.tokenizer!r}: choose 'bytes' or 'llama3'.")
    if config.space_after_slot and config.tokenizer != "llama3":
        raise InputError(f"In {name}, space_after_slot is true, and only the tokenizer 'llama3' has such a space.")
    return config


def _check_codec(config: CodecConfig, name: str) -> None:
    _check_sizes(config, name)
    if isinstance(config, MimiConfig) and config.dim % (2 * config.heads):
        raise InputError(
            f"In {name}, dim {config.dim} is no even multiple of heads {config.heads}: change one of them."
        )
    most = config.total_codebooks if isinstance(config, MimiConfig) else config.num_codebooks
    if not 2 <= config.num_codebooks <= most:
        raise InputError(
            f"In {name}, num_codebooks is {config.num_codebooks}: choose at least 2, and no more than total_codebooks."
        )


def _check_sizes(config: Any, name: str) -> None:
    """Whole numbers above 0 where a config, or a config in it, has sizes; 0 where that is the default: no such part."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            _check_sizes(value, name)
        elif field.type == "int" and (type(value) is not int or value < (0 if field.default == 0 else 1)):
            raise InputError(f"In {name}, {field.name} is {value!r}: give a whole number above 0.")


def _named(file: Path) -> str:
    return f"{file.parent.name}/{file.name}" if file.name == CONFIG else file.name
