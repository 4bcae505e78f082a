"""Where in a recording somebody speaks, how loud, and above how much noise: the measuring side of the prompt check."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE

STEP = 240  # samples: levels are read every 10 ms ...
WINDOW = 480  # ... over 20 ms
SILENCE_DB = -100.0  # what digital silence counts as, in dB of full scale
STEADY = 3.0  # dB by which the level of speech varies at least (standard deviation)
_RATE = 16_000  # Hz, what the detector listens to
_FRAME = 512  # samples at 16 kHz: the detector decides every 32 ms
_CONTEXT = 64  # samples of the frame before, which it wants to see again


def levels(wave: Tensor) -> Tensor:
    """float32 (num_samples,) at 24 kHz -> dB of full scale (RMS) every 10 ms: (windows,)."""
    padded = torch.nn.functional.pad(wave.float(), (0, max(0, WINDOW - len(wave))))
    power = padded.unfold(0, WINDOW, STEP).square().mean(dim=1)
    return 10 * torch.log10(power + 10 ** (SILENCE_DB / 10))


class SpeechDetector:
    """Silero VAD's network, read from the file that PyPI's `silero-vad` brings and run by onnxruntime."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            str(_detector_file()), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, wave: Tensor) -> Tensor:
        """float32 (num_samples,) at 24 kHz -> the probability of speech every 32 ms: (frames,)."""
        samples = resample(wave.detach().to("cpu", torch.float32), SAMPLE_RATE, _RATE).numpy()
        samples = np.pad(samples, (_CONTEXT, -len(samples) % _FRAME)).astype(np.float32)
        state = np.zeros((2, 1, 128), dtype=np.float32)
        heard: list[float] = []
        for at in range(0, len(samples) - _CONTEXT, _FRAME):
            inputs = {
                "input": samples[None, at : at + _CONTEXT + _FRAME],
                "state": state,
                "sr": np.array(_RATE, dtype=np.int64),
            }
            probability, state = self._session.run(None, inputs)
            heard.append(float(probability[0, 0]))
        return torch.tensor(heard)


def detector() -> SpeechDetector | None:
    """The speech detector, where `silero-vad` and onnxruntime are installed."""
    if importlib.util.find_spec("onnxruntime") is None or _detector_file() is None:
        return None
    return SpeechDetector()


def _detector_file() -> Path | None:
    # Importing the package would set the number of threads of the whole program, so only its file is looked up.
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "silero_vad.onnx"
    return path if path.is_file() else None


@dataclass(frozen=True)
class Loudness:
    """Levels of a recording in dB: of its speech (mean power, dB of full scale), and of speech above the noise
    between the words; `flatness` tells hiss (near 1) from hum and music (near 0) in that noise."""

    speech: float
    above_noise: float
    flatness: float


def loudness(wave: Tensor) -> Loudness:
    """Measure float32 (num_samples,) at 24 kHz. Digital silence, such as edited pauses, counts as no noise at all."""
    level = levels(wave)
    power = 10 ** (level / 10)
    speech = 10 * float(torch.log10(power[level > float(level.quantile(0.98)) - 15].mean()))
    quiet = level <= level.quantile(0.1)
    noise = 10 * float(torch.log10(power[quiet].mean()))
    return Loudness(speech, speech - noise, _flatness(wave, quiet))


def _flatness(wave: Tensor, chosen: Tensor) -> float:
    """Spectral flatness between 100 Hz and 6 kHz of the chosen windows: geometric over arithmetic mean of power."""
    padded = torch.nn.functional.pad(wave.float(), (0, max(0, WINDOW - len(wave))))
    pieces = padded.unfold(0, WINDOW, STEP)[chosen] * torch.hann_window(WINDOW)
    power = torch.fft.rfft(pieces).abs().square().mean(dim=0)[2:121] + 1e-12
    return float(power.log().mean().exp() / power.mean())


def fastest_fall(wave: Tensor) -> float | None:
    """How many dB the sound loses in 80 ms where it falls fastest, the mean of four octaves from 280 Hz to 4.5 kHz.

    A room's echo keeps it from falling: near 25 and more in a dry recording, below 15 when the echo takes 0.4 s and
    more to fade (60 dB). None when noise hides it. float32 (num_samples,) at 24 kHz.
    """
    if len(wave) < SAMPLE_RATE // 2:
        return None
    spectrum = torch.stft(wave.float(), 512, STEP, window=torch.hann_window(512), return_complex=True)
    power = spectrum.abs().square()
    falls = []
    for low, high in ((6, 12), (12, 24), (24, 48), (48, 96)):
        band = power[low:high].sum(dim=0)
        level = 10 * torch.log10(band + band.max() * 1e-7)
        before, after = level[:-8], level[8:]
        clear = (before > level.max() - 30) & (before > level.quantile(0.05) + 20)
        if int(clear.sum()) >= 20:
            falls.append(float((before - after)[clear].quantile(0.95)))
    return sum(falls) / len(falls) if len(falls) > 1 else None


def clipped(wave: Tensor) -> bool:
    """Whether the loudest samples were cut off: flat tops, or more samples near the top than somewhat below it.

    The second sign survives resampling and compression, which make the flat tops wavy.
    """
    size = wave.abs()
    peak = float(size.max()) if len(size) else 0.0
    if peak < 0.01:
        return False
    at_top = size > 0.985 * peak
    flat = int((at_top[:-2] & at_top[1:-1] & at_top[2:]).sum())
    counts = torch.histc(size, 25, 0, peak)
    pairs = counts[:-1] + counts[1:]
    # bins i and i + 1 of 25 against the two bins 3 below them, in the upper half of the range
    bump = (pairs[12:] > 1.3 * (pairs[9:-3] + 1)) & (pairs[12:] > 4e-4 * len(wave))
    return flat > 4e-4 * len(wave) or bool(bump.any())


def sounding_edges(wave: Tensor, keep: float = 0.1) -> tuple[int, int]:
    """First sample of what sounds and the one after the last, with `keep` seconds around it; (0, 0) for silence."""
    level = levels(wave)
    loudest = float(level.max())
    if loudest < -60:
        return 0, 0
    sounding = (level > loudest - 40).nonzero().flatten()
    margin = int(keep * SAMPLE_RATE)
    begin, end = int(sounding[0]) * STEP, int(sounding[-1]) * STEP + WINDOW
    return max(0, begin - margin), min(len(wave), end + margin)
