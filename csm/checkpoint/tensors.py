"""Files -> tensors -> modules: reading weight files and filling a module strictly. Below every layout there is."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from csm.codec import Codec
from csm.errors import InputError
from csm.model import CSM
from csm.text import Tokenizer


class Loaded:
    """What a model consists of, ready for the generator."""

    def __init__(self, name: str, model: CSM, codec: Codec, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.codec, self.tokenizer = name, model, codec, tokenizer


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of some safetensors files. Raises `InputError` for a file that is missing or cut short."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise InputError(f"The weight file {file.name} can't be read ({error}): fetch it again.") from error
    return tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Put `tensors` into `module`, all of them and nothing else. Raises `InputError` naming the first odd key."""
    expected = module.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(f"The {what} lacks {len(missing)} tensors, the first of them {missing[0]}.")
    if unknown := sorted(set(tensors) - set(expected)):
        raise InputError(f"The {what} has {len(unknown)} tensors that the model doesn't know, the first {unknown[0]}.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"The {what}'s {name} has shape {tuple(tensor.shape)}; its config asks for "
                f"{tuple(expected[name].shape)}."
            )
    module.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}, assign=True)
