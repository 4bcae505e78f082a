"""Discriminators that tell a codec's work from recordings, and the losses they give: what takes a codec from clear to
natural. Used by codec training only; nothing here is shipped.

Convolutions over complex spectrograms at several window sizes, as in EnCodec (Défossez et al. 2022, arXiv:2210.13438),
which Mimi took over (Défossez et al. 2024, arXiv:2410.00037); feature matching goes back to MelGAN and HiFi-GAN (Kong
et al. 2020, arXiv:2010.05646). Narrower than theirs, so that two CPU cores can afford a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.model.precision import quick_in_bfloat16

WINDOWS = (2048, 1024, 512)  # samples at 24 kHz
POWER = 0.3  # loudness is closer to this power of the amplitude than to the amplitude
FLOOR = 1e-4  # amplitude below which the power turns linear, so that silence has a finite gradient
SCALE = 6.0  # gives the spectra of speech a standard deviation of about 1/2

Judged = list[tuple[Tensor, list[Tensor]]]  # for each window: scores, and the features of every layer


class SpectrumDiscriminator(nn.Module):
    """Scores every patch of a spectrogram: convolutions that halve the frequencies and look ever further in time."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.size = window
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.convs = nn.ModuleList(
            [
                _conv(2, channels, (3, 8), stride=(1, 4), padding=(1, 2)),
                _conv(channels, 2 * channels, (3, 6), stride=(1, 2), padding=(1, 2)),
                _conv(2 * channels, 2 * channels, (3, 6), stride=(1, 2), padding=(2, 2), dilation=(2, 1)),
                _conv(2 * channels, 2 * channels, (3, 6), stride=(1, 2), padding=(4, 2), dilation=(4, 1)),
                _conv(2 * channels, 2 * channels, (3, 3), padding=(1, 1)),
            ]
        )
        self.score = _conv(2 * channels, 1, (3, 3), padding=(1, 1))

    def spectrum(self, wave: Tensor) -> Tensor:
        """(B, samples) -> (B, 2, frames, window / 2): real and imaginary part, the magnitude to the power of 0.3.

        Plain spectra of speech lie between 1e-5 and 1e-1, where a discriminator learns next to nothing; these are of
        order 1. The highest bin is left out, so that every convolution halves evenly.
        """
        frames = wave.float().unfold(1, self.size, self.size // 4) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames)[..., :-1]) * (2 / self.window.sum())
        power = spectrum.square().sum(-1, keepdim=True) + FLOOR**2
        return (SCALE * spectrum * power ** ((POWER - 1) / 2)).permute(0, 3, 1, 2)

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.spectrum(wave).contiguous(memory_format=torch.channels_last)
        features = []
        with torch.autocast(wave.device.type, torch.bfloat16, enabled=quick_in_bfloat16(wave.device.type)):
            for conv in self.convs:
                x = F.leaky_relu(conv(x), 0.2)
                features.append(x)
            return self.score(x), features


def _conv(inputs: int, outputs: int, kernel: tuple[int, int], **options: tuple[int, int]) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(inputs, outputs, kernel, **options))  # type: ignore[arg-type]


class Adversary(nn.Module):
    """One discriminator for each window size. Clips must be at least as long as the longest window."""

    def __init__(self, windows: tuple[int, ...] = WINDOWS, channels: int = 16) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(SpectrumDiscriminator(window, channels) for window in windows)

    def forward(self, wave: Tensor) -> Judged:
        """float32 (B, samples) at 24 kHz -> for each window, scores (B, 1, frames, bands) and features. High scores
        are for recordings. Convolutions run in bfloat16, spectra in float32."""
        return [discriminator(wave) for discriminator in self.discriminators]


def discriminator_loss(adversary: Adversary, real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss: recordings above 1, the codec's work below -1; 2 when the scores are all zero.

    Args: real and made, float32 (B, samples). `made` gets no gradient.
    """
    judged = adversary(torch.cat([real, made.detach()]))
    losses = [
        F.relu(1 - on_real.float()).mean() + F.relu(1 + on_made.float()).mean()
        for on_real, on_made in (scores.chunk(2) for scores, _ in judged)
    ]
    return torch.stack(losses).mean()


def fooled(adversary: Adversary, made: Tensor) -> Tensor:
    """Minus the scores of `made`, float32 (B, samples): the other side of the hinge, for the codec to lower. The
    discriminators get no gradient."""
    with _unlearning(adversary):
        return _deception(adversary(made))


def generator_losses(adversary: Adversary, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """What the codec is to lower: minus its scores, as in `fooled`, and the distance of its features.

    The feature distance is relative, as in EnCodec: a layer's mean absolute difference over the mean absolute value on
    recordings, averaged over layers and windows; 0 for a perfect copy. The discriminators get no gradient.

    Args: real and made, float32 (B, samples), clip for clip.
    """
    with _unlearning(adversary):
        with torch.no_grad():
            on_real = adversary(real)
        on_made = adversary(made)
    distances = [
        F.l1_loss(mine.float(), theirs.float()) / (theirs.float().abs().mean() + 1e-3)
        for (_, made_layers), (_, real_layers) in zip(on_made, on_real, strict=True)
        for mine, theirs in zip(made_layers, real_layers, strict=True)
    ]
    return _deception(on_made), torch.stack(distances).mean()


def _deception(judged: Judged) -> Tensor:
    return torch.stack([-scores.float().mean() for scores, _ in judged]).mean()


@contextmanager
def _unlearning(adversary: Adversary) -> Iterator[None]:
    """What is computed inside gives the discriminators no gradient."""
    learning = [parameter for parameter in adversary.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
