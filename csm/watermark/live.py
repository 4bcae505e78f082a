"""The mark on a sound that is still being made."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.watermark.networks import Conv, Encoder, networks
from csm.watermark.spectra import BINS, HOP, WINDOW, checked, hann, magnitude, normalised
from csm.watermark.whole import SILENCE, with_mark

LIVE_GAIN = 0.93  # takes back about what the mark adds


class LiveMark:
    """Marks a sound while it is made, piece by piece, 0.2 s behind it: for ears on the way, where `mark` would have to
    wait for the end. No sample is looked at twice, and the joins can't be heard: what is marked does not depend on the
    pieces, rounding aside."""

    def __init__(self) -> None:
        encoder, _ = networks()
        self._layers = _LiveLayers(encoder)
        self._wave = torch.zeros(0)  # what windows to come still see
        self._seen = 0  # windows that were looked at
        self._loudest = 0.0  # of their sums of decibels
        self._spectra = torch.zeros(BINS, 0, dtype=torch.complex64)  # those whose change isn't known yet
        self._decibels = torch.zeros(BINS, 0)
        self._weights = torch.zeros(0)
        self._dry = torch.zeros(0)  # samples that wait for all of their change
        self._added = torch.zeros(2, WINDOW - HOP)  # what is known of that, and of the sum of the windows' squares ...
        self._before = WINDOW // 2  # ... which begin so many samples before the sound does
        self._count = 0  # samples that were pushed

    def push(self, wave: Tensor) -> Tensor:
        """float32 (num_samples,) at 24 kHz, any length -> the marked samples that are ready, none at first."""
        return self._take(checked(wave), last=False)

    def flush(self) -> Tensor:
        """The samples still waiting. After it, pushed and returned samples are equally many."""
        return self._take(torch.zeros(0), last=True)

    @torch.inference_mode()
    def _take(self, wave: Tensor, last: bool) -> Tensor:
        self._wave, self._dry = torch.cat([self._wave, wave]), torch.cat([self._dry, wave])
        self._count += len(wave)
        if not self._seen and len(self._wave) < WINDOW:
            return self._in_one() if last else wave[:0]
        windows = self._windows(last)
        if not len(windows):
            return wave[:0]
        added = self._added_by(self._changes(torch.fft.rfft(windows * hann()).T, last), last)
        if last:  # reconstruction needs whole hops: what is left of the last one is not changed
            added = F.pad(added[: len(self._dry) - self._count % HOP], (0, self._count % HOP))
        sound, self._dry = self._dry[: len(added)], self._dry[len(added) :]
        return ((sound + added) * LIVE_GAIN).clamp(-1.0, 1.0)

    def _in_one(self) -> Tensor:
        """All of a sound that is shorter than a window."""
        if not len(self._wave) or float(self._wave.abs().max()) < SILENCE:
            return self._wave
        padded = F.pad(self._wave, (0, WINDOW - len(self._wave)))
        marked = with_mark(networks()[0], padded)[: len(self._wave)]
        return (marked * LIVE_GAIN).clamp(-1.0, 1.0)

    def _windows(self, last: bool) -> Tensor:
        """The new windows, (count, WINDOW): centred every HOP samples from the first on, reflected at both ends."""
        half = WINDOW // 2
        if not self._seen:
            self._wave = torch.cat([self._wave[1 : half + 1].flip(0), self._wave])
        if last:
            self._wave = torch.cat([self._wave, self._wave[-half - 1 : -1].flip(0)])
        windows = self._wave.unfold(0, WINDOW, HOP) if len(self._wave) >= WINDOW else self._wave.new_zeros(0, WINDOW)
        self._seen += len(windows)
        self._wave = self._wave[len(windows) * HOP :]
        return windows

    def _changes(self, spectra: Tensor, last: bool) -> Tensor:
        """New spectra (769, count) -> the changes that are known now, complex (BINS, count)."""
        seen = normalised(spectra)
        sums = seen.sum(dim=0)
        self._loudest = max([self._loudest, *sums.tolist()])
        self._spectra = torch.cat([self._spectra, spectra[:BINS]], dim=1)
        self._decibels = torch.cat([self._decibels, seen[:BINS]], dim=1)
        self._weights = torch.cat([self._weights, (sums > 0.05 * self._loudest).float()])
        found = self._layers.push(seen[None, :BINS], last)[0]
        count = found.shape[1]
        target = self._decibels[:, :count] + found * self._weights[:count]
        spectrum = self._spectra[:, :count]
        self._spectra, self._decibels = self._spectra[:, count:], self._decibels[:, count:]
        self._weights = self._weights[count:]
        return torch.polar(magnitude(target), spectrum.angle()) - spectrum

    def _added_by(self, changes: Tensor, last: bool) -> Tensor:
        """The changes of further windows -> what they and those before add to the samples that no later one reaches."""
        window, count = hann(), changes.shape[1]
        sums = self._added
        if count:
            pieces = torch.fft.irfft(F.pad(changes.T, (0, WINDOW // 2 + 1 - BINS)), n=WINDOW) * window
            both = torch.stack([pieces, (window * window).expand_as(pieces)])
            length = (count - 1) * HOP + WINDOW
            new = F.fold(both.transpose(1, 2), (1, length), (1, WINDOW), stride=(1, HOP)).view(2, length)
            sums = new + F.pad(sums, (0, length - sums.shape[1]))
        ready = sums.shape[1] if last else count * HOP
        begin = min(self._before, ready)
        self._before, self._added = self._before - begin, sums[:, ready:]
        return sums[0, begin:ready] / sums[1, begin:ready]


class _LiveLayers:
    """The encoder's layers on pieces of decibels, one after the other: what each sees on either side waits in it."""

    def __init__(self, encoder: Encoder) -> None:
        self._layers = cast(list[Conv], list(encoder.layers))
        self._past = [torch.zeros(1, layer.conv.in_channels, layer.reach) for layer in self._layers]

    def push(self, x: Tensor, last: bool) -> Tensor:
        """(1, BINS, count) -> what is known now of what to add to those and earlier ones, (1, BINS, so many)."""
        for number, layer in enumerate(self._layers):
            reach = layer.reach
            x = torch.cat([self._past[number], x], dim=2)
            if last:
                x = F.pad(x, (0, reach))
            self._past[number] = x[:, :, max(0, x.shape[2] - 2 * reach) :] if reach else x[:, :, :0]
            x = layer.within(x) if x.shape[2] > 2 * reach else x.new_zeros(1, layer.conv.out_channels, 0)
        return x
