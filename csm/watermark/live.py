"""The mark on a sound that is still being made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
        self._layers = _LiveLayers.of(networks()[0])
        self._wave = torch.zeros(0)  # what windows to come still see
        self._seen = 0  # windows that were looked at
        self._loudest = 0.0  # of their sums of decibels so far
        self._spectra = torch.zeros(BINS, 0, dtype=torch.complex64)  # those whose change isn't known yet
        self._decibels = torch.zeros(BINS, 0)
        self._weights = torch.zeros(0)
        self._dry = torch.zeros(0)  # samples that wait for all of their change
        self._added = torch.zeros(2, WINDOW - HOP)  # what is known of that, and of the sum of the windows' squares ...
        self._before = WINDOW // 2  # ... which begin so many samples before the sound does
        self._count = 0  # samples that were pushed

    def push(self, wave: Tensor) -> Tensor:
        """float32 (num_samples,) at 24 kHz, any length -> the marked samples that are ready, none at first."""
        return push_side_by_side([self], [wave])[0]

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The samples still waiting. After it, pushed and returned samples are equally many."""
        if not self._seen and len(self._wave) < WINDOW:
            return self._in_one()
        seen = self._see(torch.zeros(0), last=True)
        return self._marked(self._layers.push(seen, last=True), last=True)

    def _see(self, wave: Tensor, last: bool = False) -> Tensor:
        """Take in `wave` -> the decibels of the windows that are new with it, (1, count, BINS)."""
        self._wave, self._dry = torch.cat([self._wave, wave]), torch.cat([self._dry, wave])
        self._count += len(wave)
        if not self._seen and len(self._wave) < WINDOW:
            return wave.new_zeros(1, 0, BINS)
        windows = self._windows(last)
        if not len(windows):
            return wave.new_zeros(1, 0, BINS)
        spectra = torch.fft.rfft(windows * hann()).T
        seen = normalised(spectra)
        sums = seen.sum(dim=0)
        loudest = sums.cummax(dim=0).values.clamp_min(self._loudest)
        self._loudest = float(loudest[-1])
        self._spectra = torch.cat([self._spectra, spectra[:BINS]], dim=1)
        self._decibels = torch.cat([self._decibels, seen[:BINS]], dim=1)
        self._weights = torch.cat([self._weights, (sums > 0.05 * loudest).float()])
        return seen[:BINS].T[None]

    def _marked(self, found: Tensor, last: bool = False) -> Tensor:
        """What the layers `found` so far, (1, count, BINS) -> the samples that are ready with it."""
        added = self._added_by(self._changes(found[0].T), last)
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

    def _changes(self, found: Tensor) -> Tensor:
        """What to add to decibels, (BINS, count) -> the changes of the spectra, complex (BINS, count)."""
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


@torch.inference_mode()
def push_side_by_side(marks: Sequence[LiveMark], waves: Sequence[Tensor]) -> list[Tensor]:
    """What each of the marks gives for its wave, where the networks see those that are equally far in one batch."""
    ready: dict[LiveMark, Tensor] = {}
    alike: defaultdict[tuple[int, ...], list[tuple[LiveMark, Tensor]]] = defaultdict(list)
    for mark, wave in zip(marks, waves, strict=True):
        seen = mark._see(checked(wave))
        if seen.shape[1]:
            alike[(seen.shape[1], *mark._layers.waiting)].append((mark, seen))
        else:
            ready[mark] = wave[:0]
    for group in alike.values():
        layers = _LiveLayers.join([mark._layers for mark, _ in group])
        found = layers.push(torch.cat([seen for _, seen in group]))
        for (mark, _), after, own in zip(group, layers.split(), found.split(1)):
            mark._layers, ready[mark] = after, mark._marked(own)
    return [ready[mark] for mark in marks]


class _LiveLayers:
    """The encoder's layers on pieces of decibels, one after the other: what each sees on either side waits in it."""

    def __init__(self, layers: list[Conv], past: list[Tensor]) -> None:
        self._layers, self._past = layers, past

    @classmethod
    def of(cls, encoder: Encoder) -> _LiveLayers:
        layers = cast(list[Conv], list(encoder.layers))
        return cls(layers, [torch.zeros(1, layer.reach, layer.conv.in_channels) for layer in layers])

    @classmethod
    def join(cls, several: Sequence[_LiveLayers]) -> _LiveLayers:
        """Those of sounds that have equally much waiting, as a batch."""
        return cls(several[0]._layers, [torch.cat(past) for past in zip(*(one._past for one in several))])

    def split(self) -> list[_LiveLayers]:
        """The sounds of a batch, each with its own."""
        return [_LiveLayers(self._layers, list(past)) for past in zip(*(past.split(1) for past in self._past))]

    @property
    def waiting(self) -> list[int]:
        """How much waits in each."""
        return [past.shape[1] for past in self._past]

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """(B, count, BINS) -> what is known now of what to add to those and earlier ones, (B, so many, BINS)."""
        for number, layer in enumerate(self._layers):
            reach = layer.reach
            x = torch.cat([self._past[number], x], dim=1)
            if last:
                x = F.pad(x, (0, 0, 0, reach))
            self._past[number] = x[:, max(0, x.shape[1] - 2 * reach) :] if reach else x[:, :0]
            x = layer.within(x) if x.shape[1] > 2 * reach else x.new_zeros(len(x), 0, layer.conv.out_channels)
        return x
