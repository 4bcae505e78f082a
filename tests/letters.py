"""Speech without sound to train a small language model on: codes that follow the letters of made-up words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from csm.model import CSM
from csm.training.corpus import Utterance
from csm.training.lm import LMSettings
from csm.training.plots import read_metrics
from tests.small import small_config

CONFIG = small_config(max_positions=512)
CONFIG = replace(CONFIG, backbone=replace(CONFIG.backbone, layers=5))
SETTINGS = LMSettings(
    steps=12,
    rate=0.01,
    warmup=2,
    positions=128,
    batch_positions=256,
    guided_layer=1,
    voice_layer=2,
    every=6,
    log_every=1,
)
CURVES = ("code0", "depth", "guide", "voice", "gradient_norm")


def new_model() -> CSM:
    torch.manual_seed(1)
    return CSM(CONFIG).init_weights()


def write_speech(folder: Path) -> Path:
    """A hundred clips of two speakers: no sound, and codes that follow the letters of the text."""
    rng = np.random.default_rng(0)
    lines, codes, offset = [], [], 0
    for number in range(100):
        text = "".join(rng.choice(list("abcdefgh"), 6)) + " " + "".join(rng.choice(list("abcdefgh"), 5)) + "."
        frames = len(text)
        words = [(0, 6, 0.0, frames * 0.04), (7, 12, frames * 0.04, frames * 0.08)]
        lines.append(json.dumps(vars(Utterance(0, offset, frames * 1920, text, ("slt", "rms")[number % 2], [], words))))
        letters = np.array([ord(letter) % 32 for letter in text])
        codes.append(np.stack([(letters + k * (number % 2 + 1)) % 32 for k in range(4)], axis=1))
        offset += frames * 1920
    (folder / "utterances-000.jsonl").write_text("\n".join(lines))
    np.save(folder / "audio-000.npy", np.zeros(1, np.int16))
    np.save(folder / "codes-000.npy", np.concatenate(codes).astype(np.int16))
    return folder


def curve(folder: Path) -> list[list[float]]:
    """The logged values of `CURVES`, step by step."""
    return [[record[name] for name in CURVES] for record in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model's part of a run's saved state."""
    return torch.load(folder / "state.pt", weights_only=True)["module"]
