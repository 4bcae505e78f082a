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
IN_VIEW = 24 * HOP  # what live marking sees on either side: half a window and the 15 frames that the encoder reaches
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
    """Marks a sound while it is made, piece by piece, 0.24 s behind it: for ears on the way, where `mark` would have
    to wait for the end. The joins can't be heard: every sample is marked with what lies around it in view."""

    def __init__(self) -> None:
        self._encoder, _ = _networks()
        self._wave = torch.zeros(0)  # what is still in view
        self._done = 0  # samples of it that are out

    def push(self, wave: Tensor) -> Tensor:
        """float32 (num_samples,) at 24 kHz, any length -> the marked samples that are ready, none at first."""
        self._wave = torch.cat([self._wave, _checked(wave)])
        return self._marked((len(self._wave) - IN_VIEW) // HOP * HOP)

    def flush(self) -> Tensor:
        """The samples still waiting. After it, pushed and returned samples are equally many."""
        return self._marked(len(self._wave))

    @torch.inference_mode()
    def _marked(self, upto: int) -> Tensor:
        """Marked samples from what is out to `upto`, and the view moved on, a whole number of hops as ever."""
        if upto <= self._done:
            return torch.zeros(0)
        ready = self._wave[self._done : upto]
        if float(self._wave.abs().max()) >= SILENCE:
            padded = F.pad(self._wave, (0, max(0, WINDOW - len(self._wave))))
            ready = (_with_mark(self._encoder, padded)[self._done : upto] * LIVE_GAIN).clamp(-1.0, 1.0)
        gone = max(0, upto - IN_VIEW) // HOP * HOP
        self._wave, self._done = self._wave[gone:], upto - gone
        return ready.clone()


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
    magnitude = 10 ** (((target * RANGE_DB - 180.0) / 20).clamp(max=10)) / SCALE
    change = torch.zeros_like(spectrum)
    change[:BINS] = torch.polar(magnitude, spectrum[:BINS].angle()) - spectrum[:BINS]
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


def _sounding(seen: Tensor) -> Tensor:
    """(bins, frames) -> (frames,): 1 where a frame holds more than a twentieth of the fullest frame's decibels,
    which leaves out digital silence only."""
    sums = seen.sum(dim=0)
    return (sums > 0.05 * sums.max()).float()


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, width, padding=width // 2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
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
