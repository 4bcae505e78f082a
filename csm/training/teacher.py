"""What code 0 is taught, so that text can predict it: a self-supervised model's features, or the synthesiser's phones.

Mimi distils WavLM (Chen et al. 2021, arXiv:2110.13900) into its first codebook (Défossez et al. 2024,
arXiv:2410.00037, section 3.3): a linear projection of code 0's vectors is to point where the teacher's features point.
The teacher hears whole clips, future included; the codec stays causal. Used by codec training only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.audio import resample
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.errors import InputError
from csm.training.codec import PHONE_TIMES, PHONES
from csm.training.corpus import Utterance

TEACHER_RATE = 16_000
TEACHER_FIELD, TEACHER_HOP = 400, 320  # samples at 16 kHz that one feature hears, and from one to the next
PER_FRAME = 4  # features in 80 ms


class Teacher:
    """A frozen speech model of the wav2vec 2.0 family (WavLM, HuBERT): 16 kHz in, features at 50 Hz out."""

    def __init__(self, model: nn.Module, dim: int, normalise: bool) -> None:
        self.model = model.eval().requires_grad_(False)
        self.dim, self.normalise = dim, normalise

    @torch.no_grad()
    def features(self, wave: Tensor) -> Tensor:
        """float32 (B, 1920 frames) at 24 kHz -> (B, frames, dim): the last layer, pooled to 12.5 Hz.

        Pooling averages over 8 features, 4 apart, as for Mimi, so it reaches 40 ms into the neighbours of a frame.
        """
        heard = torch.stack([resample(clip, SAMPLE_RATE, TEACHER_RATE) for clip in wave]).to(wave.device)
        if self.normalise:
            heard = (heard - heard.mean(1, keepdim=True)) / (heard.var(1, keepdim=True) + 1e-7).sqrt()
        margin = (TEACHER_FIELD - TEACHER_HOP) // 2  # centres the features: four for every frame
        features = self.model(F.pad(heard, (margin, margin))).last_hidden_state.transpose(1, 2)
        pooled = F.avg_pool1d(features, 2 * PER_FRAME, PER_FRAME, PER_FRAME // 2, count_include_pad=False)
        frames = wave.shape[1] // FRAME_SIZE
        if pooled.shape[2] != frames:
            raise InputError(
                f"The teacher gives {features.shape[2]} features for {frames} frames; {PER_FRAME} for each are needed: "
                "choose a model of the WavLM, HuBERT or wav2vec 2.0 family."
            )
        return pooled.transpose(1, 2)


def load_teacher(name: str, device: str = "cpu") -> Teacher:
    """A model that transformers knows, from a local folder, or by its hub id from the hub's cache; never downloaded.

    Raises `InputError` when there is none, or when it does not listen to waveforms.
    """
    from transformers import AutoModel  # here, because it takes seconds to import
    from transformers.utils import cached_file

    try:
        # The folder, so that what comes next can't ask the hub, which transformers does for a name.
        folder = Path(str(cached_file(name, "config.json", local_files_only=True))).parent
        model: Any = AutoModel.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"There is no teacher {name!r} here: give the folder of a WavLM model, or leave --teacher out."
        ) from error
    if not hasattr(model.config, "conv_stride"):
        raise InputError(f"The teacher {name!r} does not listen to waveforms: choose a WavLM or HuBERT model.")
    preprocessing = folder / "preprocessor_config.json"
    settings = json.loads(preprocessing.read_text()) if preprocessing.exists() else {}
    return Teacher(model.to(device), model.config.hidden_size, bool(settings.get("do_normalize")))


class FeatureLesson(nn.Module):
    """1 - cosine between a projection of code 0's vectors and the teacher's features."""

    def __init__(self, dim: int, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher  # no module, so that a run doesn't save it
        self.project = nn.Linear(dim, teacher.dim, bias=False)

    def forward(self, semantic: Tensor, wave: Tensor, phones: Tensor) -> tuple[Tensor, dict[str, float]]:
        """semantic (B, frames, dim), wave (B, 1920 frames), phones (B, frames, 2), not used -> loss, metrics."""
        likeness = F.cosine_similarity(self.project(semantic), self.teacher.features(wave), dim=-1).mean()
        return 1 - likeness, {"likeness": likeness.item()}


class PhoneLesson(nn.Module):
    """Cross-entropy of reading the phones of each frame, as the synthesiser spoke them, from code 0's vector alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(dim, len(PHONE_TIMES) * len(PHONES))

    def forward(self, semantic: Tensor, wave: Tensor, phones: Tensor) -> tuple[Tensor, dict[str, float]]:
        """semantic (B, frames, dim), wave, not used, phones int64 (B, frames, 2) -> loss, metrics."""
        read = self.read(semantic).view(*phones.shape, len(PHONES))
        accuracy = (read.argmax(-1) == phones).float().mean()
        return F.cross_entropy(read.flatten(0, 2), phones.flatten()), {"phone_accuracy": accuracy.item()}


def choose_lesson(dim: int, clips: list[Utterance], teacher: Teacher | None) -> tuple[nn.Module | None, str]:
    """The best lesson there is for vectors of `dim` numbers, and a line that says which it is."""
    if teacher:
        return FeatureLesson(dim, teacher), "Code 0 is made semantic by the teacher's features."
    if clips and all(clip.phones for clip in clips):
        return PhoneLesson(dim), "Code 0 is made semantic by the synthesiser's phones."
    return None, "Code 0 is not made semantic: there is no teacher (--teacher FOLDER), and no phones with the speech."
