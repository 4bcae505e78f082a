"""What a model is, told without reading its weights: layout, files, sizes, memory needed, licence."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from csm.assets import ASSETS
from csm.checkpoint.configs import model_config, read_config
from csm.checkpoint.find import find_model
from csm.checkpoint.folder import read_config as read_own_config
from csm.checkpoint.hub import Snapshot, Token, cached_model, fetch_file
from csm.checkpoint.packed import is_packed
from csm.checkpoint.published import open_published
from csm.checkpoint.tensors import open_tensors
from csm.codec import build_codec
from csm.config import PRESETS, RELEASES, ModelConfig, Release
from csm.errors import InputError
from csm.model.size import parameter_counts
from csm.text import turn_text


@dataclass(frozen=True)
class Facts:
    """One model. `files` are name and bytes; `types` says how many tensors are stored in which precision."""

    name: str
    layout: str
    config: ModelConfig
    licence: str
    files: dict[str, int]
    types: dict[str, int]

    def lines(self) -> list[str]:
        """The facts as a table, the name first."""
        counts = parameter_counts(self.config)
        with torch.device("meta"):
            codec = sum(tensor.numel() for tensor in build_codec(self.config.codec).module.state_dict().values())
        backbone = self.config.backbone
        cached = 2 * backbone.layers * backbone.kv_heads * backbone.head_dim * self.config.max_positions
        memory = [
            f"{((counts['total'] + cached) * width + codec * 4) / 1e9:.2f} GB in {name}"
            for name, width in (("float32", 4), ("bfloat16", 2))
        ]
        rows = [("layout", self.layout)]
        rows += [("file", f"{size / 1e6:10,.1f} MB  {name}") for name, size in self.files.items()]
        if self.types:
            rows.append(("stored as", ", ".join(f"{name} ({count} tensors)" for name, count in self.types.items())))
        rows += [(part, f"{count:>13,} parameters") for part, count in counts.items()]
        rows.append(("codec", f"{codec:>13,} parameters, codebooks included"))
        rows.append(("memory needed", f"{', '.join(memory)}: weights, codec, and the cache of a full conversation"))
        rows.append(
            ("codes", f"{self.config.num_codebooks} x {self.config.audio_vocab_size}, {self.config.codec.kind}")
        )
        text = turn_text("Hello.", 0, self.config.space_after_slot)
        rows.append(("text", f"{text} to the tokenizer {self.config.tokenizer}"))
        rows.append(("positions", f"{self.config.max_positions}"))
        rows.append(("licence", self.licence))
        return [self.name, *(f"  {label:<14} {text}" for label, text in rows)]


def describe(name: str, token: Token = None) -> Facts:
    """The facts about a preset, a local model or a hub id, of which nothing but config.json is downloaded.

    Raises `InputError` for what `load_model` would refuse as well, as far as that shows without the numbers.
    """
    if name in PRESETS and not (ASSETS / name / "config.json").is_file():
        release = next((made for made in RELEASES if made.preset == name), None)
        layout = f"none here; published as {release.repository}" if release else "none: no weights are published"
        return Facts(name, layout, PRESETS[name], release.licence if release else "none", {}, {})
    if name.count("/") == 1 and not name.startswith(("/", ".")) and not Path(name).exists():
        kept = cached_model(name)
        if kept is None:
            config = _hub_config(name, token)
            return Facts(name, "not on this machine yet", config, _release(config).licence, {}, {})
        found: Path | Snapshot = kept
    else:
        found = find_model(name, token)
    if isinstance(found, Path):
        files = sorted(found.glob("*.safetensors"))
        config = read_own_config(found)
        types = Counter(str(tensor.dtype) for tensor in open_tensors(files).values())
        return Facts(name, "this project's own", config, _licence(found, config), _sizes(files), _plain(types))
    opened = open_published(found.weights, found.repository, token)
    types = Counter(str(tensor.dtype) for tensor in opened.csm.values())
    licence = _licence(opened.folder, opened.config)
    layout = "original, packed in int4" if is_packed(opened.csm) else opened.layout
    return Facts(name, layout, opened.config, licence, _sizes(opened.files), _plain(types))


def _hub_config(repository: str, token: Token) -> ModelConfig:
    try:
        given = read_config(fetch_file(repository, "config.json", token).parent)
        assert given is not None
        return model_config(given)
    except InputError:
        for release in RELEASES:
            if release.repository == repository:
                return release.config
        raise


def _sizes(files: list[Path]) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in files}


def _plain(types: Counter[str]) -> dict[str, int]:
    return {name.removeprefix("torch."): count for name, count in types.most_common()}


def _release(config: ModelConfig) -> Release:
    """The published model of that backbone, from which others of it are tuned; CSM-1B for any other backbone."""
    return next((made for made in RELEASES if made.config.backbone == config.backbone), RELEASES[0])


def _licence(folder: Path, config: ModelConfig) -> str:
    """What stands beside the weights about their licence: a model card's front matter, or a licence file."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
        if found := re.search(r"\A---\n(?:.*\n)*?license: *(\S.*)\n(?:.*\n)*?---\n", card):
            return f"{found[1]}, by the README.md beside the weights"
    except (OSError, ValueError):
        pass
    if any((folder / name).is_file() for name in ("LICENSE", "LICENSE.txt", "LICENSE.md")):
        return "in the LICENSE file beside the weights"
    release = _release(config)
    inherited = f"what derives from {release.repository} stands under its terms: {release.licence}"
    return f"none stated beside the weights; {inherited}"
