"""Files <-> weights: the embedded model's folder, and the original layout of the published 1B model.

A folder of ours holds `config.json` and safetensors shards under 10 MB, listed in `model.safetensors.index.json`
(the hub's usual index); `csm.*` are the language model's tensors and `codec.*` the codec's. Every load is strict:
a missing or unknown key is an error that names it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from csm.codec import Codec, build_codec
from csm.config import PRESETS, Environment, ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.text import ByteTokenizer, LlamaTokenizer, Tokenizer

ASSETS = Path(__file__).parent / "assets"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 9_000_000

HUB_MODEL = "sesame/csm-1b"
HUB_MIMI = ("kyutai/moshiko-pytorch-bf16", "tokenizer-e351c8d8-checkpoint125.safetensors")
HUB_TOKENIZER = ("unsloth/Llama-3.2-1B", "tokenizer.json")


class Loaded:
    """What a model consists of, ready for the generator."""

    def __init__(self, name: str, model: CSM, codec: Codec, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.codec, self.tokenizer = name, model, codec, tokenizer


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


def _read_folder(folder: Path, name: str) -> Loaded:
    try:
        config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The folder {folder.name} is no complete model of this project: {error}.") from error
    tensors = read_tensors([folder / file for file in files])

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    with torch.device("meta"):
        model = CSM(config)
    fill(model, part("csm."), "checkpoint")
    codec = build_codec(config.codec)
    fill(codec.module, part("codec."), "checkpoint's codec")
    return Loaded(name, model, codec, ByteTokenizer())


def _download(repository: str, file: str, token: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, token=token))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(
            f"The hub gives no access to {repository}: accept its terms on huggingface.co/{repository}, "
            "then set HF_TOKEN to a token of that account."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{file} of {repository} is not on this machine and the hub can't be reached: go online once, or give "
            "a local folder."
        ) from error


def _read_original(weights: Path, name: str, token: str | None) -> Loaded:
    """The published 1B model in its original layout, with Mimi and the tokenizer from their own repositories."""
    config = PRESETS["tiny"]
    with torch.device("meta"):
        model = CSM(config)
    fill(model, read_tensors([weights]), f"checkpoint {name}")
    codec = build_codec(config.codec)
    fill(codec.module, read_tensors([_download(*HUB_MIMI, token)]), "Mimi checkpoint")
    return Loaded(name, model, codec, LlamaTokenizer(_download(*HUB_TOKENIZER, token)))


def load_model(name: str) -> Loaded:
    """A preset that ships here, a local folder of ours, or a hub id in the original layout. Float32, on the CPU.

    Raises `InputError` with one sentence for anything that can't be loaded; nothing is half loaded.
    """
    token = Environment.read().token
    if (ASSETS / name / "config.json").is_file() and name in PRESETS:
        return _read_folder(ASSETS / name, name)
    if name in PRESETS and name != "tiny":
        raise InputError(f"No weights are published for {name}: train them, or choose nano or {HUB_MODEL}.")
    path = Path(name)
    if path.is_dir() and (path / INDEX).is_file():
        return _read_folder(path, path.name)
    if path.is_dir() and (path / "model.safetensors").is_file():
        return _read_original(path / "model.safetensors", path.name, token)
    if name == "tiny" or (name.count("/") == 1 and not path.exists() and not name.startswith(("/", "."))):
        repository = HUB_MODEL if name == "tiny" else name
        return _read_original(_download(repository, "model.safetensors", token), repository, token)
    raise InputError(f"There is no model {name!r}: give nano, a folder with weights, or a hub id such as {HUB_MODEL}.")
