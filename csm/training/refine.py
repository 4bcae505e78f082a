"""Make the codec's decoder sound natural against discriminators (`python -m csm train refine`).

Distances between spectra leave speech dull and buzzing; learning to pass for a recording is what takes a codec from
intelligible to natural. Encoder and quantiser stay as they are, so codes keep their meaning and a language model
trained on them stays valid. Discriminators at three window sizes look at complex spectra, as in EnCodec (Défossez et
al. 2022, arXiv:2210.13438), with hinge losses and feature matching.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.codec.spectral import TAIL, SpectralCodec, overlap_add
from csm.training.codec import MelDistance, crops
from csm.training.corpus import Corpus
from csm.training.run import Run, warmup_cosine

WINDOWS = (512, 1024, 2048)
MEL_WEIGHT, ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 15.0, 1.0, 2.0


class SpectrumDiscriminator(nn.Module):
    """Convolutions over a complex spectrogram (real and imaginary part as channels), halving the frequencies."""

    def __init__(self, window: int, channels: int = 16) -> None:
        super().__init__()
        self.size = window
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        widths = [2, channels, channels, channels, channels]
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(a, b, (3, 9), stride=(1, 2), padding=(1, 4)))
            for a, b in pairwise(widths)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """wave (B, samples) -> scores (B, 1, frames, bands) and every layer's features."""
        spectrum = torch.stft(
            wave,
            self.size,
            self.size // 4,
            window=self.window,
            return_complex=True,
            normalized=True,
            pad_mode="reflect",
        )
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        return self.last(x), features


class RefineTrainer(nn.Module):
    """The decoder in training, the rest of the codec at rest, and the discriminators."""

    def __init__(self, codec: SpectralCodec) -> None:
        super().__init__()
        self.codec = codec.eval().requires_grad_(False)
        self.codec.decoder.requires_grad_(True)
        self.discriminators = nn.ModuleList(SpectrumDiscriminator(window) for window in WINDOWS)
        self.distance = MelDistance()

    def decode(self, wave: Tensor) -> Tensor:
        """What the codec makes of wave (B, samples): encoded as it always was, decoded as the decoder now does."""
        with torch.no_grad():
            vectors = self.codec.quantizer.decode(self.codec.encode(wave)).transpose(1, 2)
        features, _ = self.codec.decoder(vectors)
        pieces = self.codec.decoder.pieces(features)
        return overlap_add(pieces, pieces.new_zeros(pieces.shape[0], TAIL))[:, TAIL:]

    def judge(self, wave: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        with torch.autocast(wave.device.type, torch.bfloat16):
            return [discriminator(wave) for discriminator in self.discriminators]

    def discriminator_loss(self, made: Tensor, target: Tensor) -> Tensor:
        """Hinge loss: recordings above 1, the decoder's work below -1."""
        losses = [
            F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
            for (real, _), (fake, _) in zip(self.judge(target), self.judge(made.detach()))
        ]
        return torch.stack(losses).mean()

    def decoder_losses(self, made: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mel distance, adversarial loss and feature distance of the decoder's work."""
        with torch.no_grad():
            real = self.judge(target)
        fake = self.judge(made)
        adversarial = torch.stack([-score.float().mean() for score, _ in fake]).mean()
        matched = [
            F.l1_loss(mine.float(), theirs.float()) / (theirs.float().abs().mean() + 1e-4)
            for (_, mines), (_, theirss) in zip(fake, real)
            for mine, theirs in zip(mines, theirss)
        ]
        return self.distance(made, target), adversarial, torch.stack(matched).mean()


def refine_codec(
    data: Path,
    codec: SpectralCodec,
    folder: Path,
    steps: int = 2_000,
    batch: int = 8,
    frames: int = 10,
    rate: float = 3e-4,
    seed: int = 2,
    every: int = 250,
) -> SpectralCodec:
    """Train (or resume) the decoder of `codec` in `folder` on the speech in `data`; returns the codec."""
    torch.manual_seed(seed)
    corpus = Corpus(data)
    train = [u for u in corpus.utterances if not u.held_out]
    held_out = [u for u in corpus.utterances if u.held_out]
    trainer = RefineTrainer(codec)
    decoder = torch.optim.AdamW(trainer.codec.decoder.parameters(), lr=rate, betas=(0.8, 0.99))
    critic = torch.optim.AdamW(trainer.discriminators.parameters(), lr=rate, betas=(0.8, 0.99))
    run = Run(folder, trainer, [decoder, critic])

    def train_step(step: int) -> dict[str, float]:
        wave, _ = crops(corpus, train, np.random.default_rng((seed, step)), batch, frames)
        for group in [*decoder.param_groups, *critic.param_groups]:
            group["lr"] = rate * warmup_cosine(step, steps, warmup=50)
        made = trainer.decode(wave)
        critic_loss = trainer.discriminator_loss(made, wave)
        critic.zero_grad(set_to_none=True)
        critic_loss.backward()
        nn.utils.clip_grad_norm_(trainer.discriminators.parameters(), 5.0)
        critic.step()
        mel, adversarial, feature = trainer.decoder_losses(made, wave)
        loss = MEL_WEIGHT * mel + ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * feature
        decoder.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.codec.decoder.parameters(), 5.0)
        decoder.step()
        return {
            "mel": mel.item(),
            "critic": critic_loss.item(),
            "adversarial": adversarial.item(),
            "feature": feature.item(),
        }

    @torch.no_grad()
    def validate() -> dict[str, float]:
        wave, _ = crops(corpus, held_out, np.random.default_rng(0), 32, frames)
        return {"mel": trainer.distance(trainer.decode(wave), wave).item()}

    run.loop(steps, train_step, validate, every)
    return trainer.codec
