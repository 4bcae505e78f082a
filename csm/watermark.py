"""Mark what leaves the program, and find the mark again: the last touch on the waveform before it is written.

The mark is that of the package `resemble-perth` (https://github.com/resemble-ai/Perth, MIT): its trained networks,
read from its own weight file, so that anybody's Perth detector finds our mark and ours finds theirs. Its Python
code stays unused: it needs `pkg_resources`, `librosa` and `torchaudio`, resamples twice and loses samples. Perth
looks at 64 ms windows every 10 ms up to 2 kHz at 32 kHz; the same windows and the same bins exist at 24 kHz, so
nothing is resampled here, and only the change below 2 kHz is added to the sound.

Perth has no key: the mark is the same for everyone, says "made by a machine" and nothing else, and whoever has the
package can look for it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import SAMPLE_RATE

WINDOW = 1_536  # samples at 24 kHz: 64 ms
HOP = 240  # 10 ms
BINS = 128  # up to 2 kHz
FLOOR = 1e-9  # the magnitude that the networks see as 0
RANGE_DB = 195.0  # from the floor (-180 dB) to 15 dB, which they see as 1
SCALE = 2_048 / WINDOW  # Perth's window is 2 048 samples at 32 kHz, so its magnitudes are that much larger
SHORTEST = SAMPLE_RATE  # shorter sound is padded to this much while it is marked
SILENCE = 1e-4  # peak below which there is nothing that could carry a mark
LIVE_GAIN = 0.93  # takes back about what the mark adds
PIECE = 20 * SAMPLE_RATE  # detection listens to this much at a time
THRESHOLD = 0.6  # of 290 unmarked clips the highest read 0.39, of 40 marked ones the lowest 0.78 (as MP3 at 32 kbit/s)


@dataclass(frozen=True)
class Detection:
    """Whether a sound carries the mark; `confidence` runs from 0 (no mark) to 1."""

    marked: bool
    confidence: float


@torch.inference_mode()
def mark(wave: Tensor) -> Tensor:
    """float32 (num_samples,) at 24 kHz -> the same with the mark: same length and level, within [-1, 1], on the CPU.

    Mark a sound once, when it is complete. Silence comes back as it was; in much less than a second of speech the
    mark is there but may be too short to be found. Raises `RuntimeError` when `resemble-perth` is not installed:
    nothing leaves unmarked by accident.
    """
    wave = _checked(wave)
    encoder, _ = _networks()
    if not len(wave) or float(wave.abs().max()) < SILENCE:
        return wave.clamp(-1.0, 1.0).clone()
    marked = _with_mark(encoder, F.pad(wave, (0, max(0, SHORTEST - len(wave)))))[: len(wave)]
    # The mark adds up to 2 dB; the detector does not mind the gain that takes them back.
    return (marked * (wave.norm() / marked.norm())).clamp(-1.0, 1.0)


class LiveMark:
    """Marks a sound while it is made, piece by piece, 0.2 s behind it: for ears on the way, where `mark` would have to
    wait for the end. No sample is looked at twice, and the joins can't be heard: what is marked does not depend on the
    pieces, rounding aside."""

    def __init__(self) -> None:
        encoder, _ = _networks()
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
        return self._take(_checked(wave), last=False)

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
        added = self._added_by(self._changes(torch.fft.rfft(windows * _window()).T, last), last)
        if last:  # reconstruction needs whole hops: what is left of the last one is not changed
            added = F.pad(added[: len(self._dry) - self._count % HOP], (0, self._count % HOP))
        sound, self._dry = self._dry[: len(added)], self._dry[len(added) :]
        return ((sound + added) * LIVE_GAIN).clamp(-1.0, 1.0)

    def _in_one(self) -> Tensor:
        """All of a sound that is shorter than a window."""
        if not len(self._wave) or float(self._wave.abs().max()) < SILENCE:
            return self._wave
        padded = F.pad(self._wave, (0, WINDOW - len(self._wave)))
        marked = _with_mark(_networks()[0], padded)[: len(self._wave)]
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
        seen = _normalised(spectra)
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
        return torch.polar(_magnitude(target), spectrum.angle()) - spectrum

    def _added_by(self, changes: Tensor, last: bool) -> Tensor:
        """The changes of further windows -> what they and those before add to the samples that no later one reaches."""
        window, count = _window(), changes.shape[1]
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

    def __init__(self, encoder: _Encoder) -> None:
        self._layers = cast(list[_Conv], list(encoder.layers))
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


@torch.inference_mode()
def detect(wave: Tensor) -> Detection:
    """Look for the mark in float32 (num_samples,) at 24 kHz, 20 seconds at a time; the surest piece counts, so that
    a marked passage inside a long recording is found. Silence has no mark; steady tones, unlike speech, can read as
    marked without being so."""
    wave = _checked(wave)
    _, decoder = _networks()
    count = max(1, round(len(wave) / PIECE))
    confidence = max(_confidence(decoder, piece) for piece in wave.tensor_split(count))
    return Detection(confidence >= THRESHOLD, confidence)


def _with_mark(encoder: nn.Module, wave: Tensor) -> Tensor:
    """float32 (num_samples,), at least a window long, with the mark added, which makes it up to 2 dB louder."""
    spectrum = _spectrum(wave)
    seen = _normalised(spectrum)
    target = seen[:BINS] + encoder(seen[None, :BINS])[0] * _sounding(seen)
    change = torch.zeros_like(spectrum)
    change[:BINS] = torch.polar(_magnitude(target), spectrum[:BINS].angle()) - spectrum[:BINS]
    # Reconstruction needs whole hops: what the last, partial hop lacks is padded with no change at all.
    whole = (len(wave) // HOP) * HOP
    added = torch.istft(change, WINDOW, HOP, window=_window(), length=whole)
    return wave + F.pad(added, (0, len(wave) - whole))


def _confidence(decoder: nn.Module, piece: Tensor) -> float:
    if not len(piece) or float(piece.abs().max()) < SILENCE:
        return 0.0
    seen = _normalised(_spectrum(F.pad(piece, (0, max(0, SHORTEST - len(piece))))))
    return float(decoder(seen[None, :BINS], _sounding(seen)[None, None]).clamp(0.0, 1.0))


def _checked(wave: Tensor) -> Tensor:
    if wave.ndim != 1:
        raise ValueError(f"A waveform has one dimension, not {wave.ndim}.")
    return torch.nan_to_num(wave.detach().cpu().float(), posinf=0.0, neginf=0.0)


def _window() -> Tensor:
    return torch.hann_window(WINDOW)


def _spectrum(wave: Tensor) -> Tensor:
    """(num_samples,) -> complex (769, frames)."""
    return torch.stft(wave, WINDOW, HOP, window=_window(), pad_mode="reflect", return_complex=True)


def _normalised(spectrum: Tensor) -> Tensor:
    """Complex (bins, frames) -> decibels from the floor up, as the networks see them: 0 to about 1."""
    decibels = 20 * torch.log10((spectrum.abs() * SCALE).clamp(min=FLOOR))
    return (decibels + 180.0) / RANGE_DB


def _magnitude(decibels: Tensor) -> Tensor:
    """The inverse of `_normalised`, for magnitudes."""
    return 10 ** (((decibels * RANGE_DB - 180.0) / 20).clamp(max=10)) / SCALE


def _sounding(seen: Tensor) -> Tensor:
    """(bins, frames) -> (frames,): 1 where a frame holds more than a twentieth of the fullest frame's decibels,
    which leaves out digital silence only."""
    sums = seen.sum(dim=0)
    return (sums > 0.05 * sums.max()).float()


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, act: bool = True) -> None:
        super().__init__()
        self.reach = width // 2
        self.conv = nn.Conv1d(inputs, outputs, width, padding=self.reach)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self._acted(self.conv(x))

    def within(self, x: Tensor) -> Tensor:
        """The same where all that the convolution sees is in `x`, whose width shrinks by that."""
        return self._acted(F.conv1d(x, self.conv.weight, self.conv.bias))

    def _acted(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x) if self.act else x


def _stack(outputs: int, hidden: int = 256) -> nn.Sequential:
    inner = [_Conv(hidden, hidden, 7) for _ in range(5)]
    return nn.Sequential(_Conv(BINS, hidden, 1), *inner, _Conv(hidden, outputs, 1, act=False))


class _Encoder(nn.Module):
    """What to add to the normalised decibels: (B, bins, frames) -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _stack(BINS)

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen)


class _Decoder(nn.Module):
    """Three readers at 1.25, 1 and 0.75 times the pace, each with a vote and the weight of its vote."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_layers = _stack(2)
        self.normal_layers = _stack(2)
        self.fast_layers = _stack(2)

    def forward(self, seen: Tensor, sounding: Tensor) -> Tensor:
        """seen (B, bins, frames), sounding (B, 1, frames) -> (B,), near 0 without and near 1 with a mark."""
        frames = seen.shape[-1]
        votes = []
        for layers, pace in ((self.slow_layers, 1.25), (self.normal_layers, 1.0), (self.fast_layers, 0.75)):
            size = int(frames * pace)
            mask = F.interpolate(sounding, size)
            read = layers(F.interpolate(seen, size, mode="linear", align_corners=True))
            votes.append((read * mask).sum(-1) / mask.sum(-1).clamp(min=1.0))
        weight, vote = torch.stack(votes, dim=-1).unbind(1)
        return (vote * weight.softmax(-1)).sum(-1)


@lru_cache(maxsize=1)
def _networks() -> tuple[_Encoder, _Decoder]:
    package = importlib.util.find_spec("perth")
    if package is None or package.origin is None:
        raise RuntimeError("The watermark is missing: install the package resemble-perth.")
    weights = Path(package.origin).parent / "perth_net/pretrained/implicit/perth_net_250000.pth.tar"
    state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
    with torch.device("meta"):
        encoder, decoder = _Encoder(), _Decoder()
    for name, network in (("encoder.", encoder), ("decoder.", decoder)):
        own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
        network.load_state_dict(own, assign=True)
        network.requires_grad_(False).eval()
    return encoder, decoder
