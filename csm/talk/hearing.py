"""The ears of a talk: how likely each moment is speech, whether a sentence sounds whole, and which words were said.

All of it is read from files inside packages, by path; what is not installed is done without, or said in one sentence.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.extras import install
from csm.listening import recogniser

RATE = 16_000  # Hz
WINDOW = 512  # samples at 16 kHz
_BEFORE = 64  # samples of the window before, which silero wants to see again
WHOLE = 0.5  # the probability from which a sentence counts as whole
ENDING_SECONDS = 8  # what Smart Turn hears of a turn
SILENCE_SECONDS = 0.13  # put behind the pause after which it is asked: it was taught with 0.2 s
_TAPS = 30  # of the filter between 24 and 16 kHz, at 48 kHz, on each side
_FFT, _HOP, _MELS = 400, 160, 80
NO_EARS = f"Talking needs a recogniser, which is not installed: run `{install('talk')}`."


class Activity:
    """Silero's probabilities of speech of one stream of sound; where it isn't installed, loudness tells."""

    def __init__(self, session: Any | None) -> None:
        self._session = session
        self._resampled = Resampled()
        self._state = np.zeros((2, 1, 128), dtype=np.float32)
        self._before: np.ndarray = np.zeros(_BEFORE, dtype=np.float32)
        self._rest: np.ndarray = np.zeros(0, dtype=np.float32)
        self._floor = 1e-3

    def push(self, wave: np.ndarray) -> list[float]:
        """float32 (num_samples,) at 24 kHz -> the probability of each window of 32 ms that is whole now."""
        self._rest = np.concatenate([self._rest, self._resampled.push(wave)])
        whole = len(self._rest) // WINDOW * WINDOW
        windows, self._rest = self._rest[:whole], self._rest[whole:]
        return [self._probability(windows[at : at + WINDOW]) for at in range(0, whole, WINDOW)]

    def _probability(self, window: np.ndarray) -> float:
        if self._session is None:
            return self._loudness(window)
        heard = np.concatenate([self._before, window])[None]
        self._before = window[-_BEFORE:]
        inputs = {"input": heard, "state": self._state, "sr": np.array(RATE, dtype=np.int64)}
        probability, self._state = self._session.run(None, inputs)
        return float(probability[0, 0])

    def _loudness(self, window: np.ndarray) -> float:
        """How far it stands out of the noise so far: 12 dB make it as likely as not."""
        level = float(np.sqrt(np.mean(np.square(window)))) + 1e-5
        self._floor = level if level < self._floor else min(self._floor * 1.005, level)
        return float(np.clip(20 * np.log10(level / max(self._floor, 1e-3)) / 24, 0.0, 1.0))


class Resampled:
    """A stream of sound at 24 kHz, at 16 kHz, as soon as it is there: a better resampler would wait for more of it."""

    def __init__(self) -> None:
        taps = np.arange(-_TAPS, _TAPS + 1)
        filtered = np.sinc(0.3 * taps) * np.hamming(len(taps))  # 7.2 kHz of 48
        self._filter = (2 * filtered / filtered.sum()).astype(np.float32)
        self._before: np.ndarray = np.zeros(2 * _TAPS, dtype=np.float32)  # at 48 kHz
        self._skip = 0  # samples at 48 kHz until the next of those at 16 kHz

    def push(self, wave: np.ndarray) -> np.ndarray:
        """float32 (num_samples,) at 24 kHz -> what of float32 at 16 kHz is known now, 0.6 ms behind."""
        doubled = np.zeros(2 * len(wave), dtype=np.float32)
        doubled[::2] = wave
        heard = np.concatenate([self._before, doubled])
        self._before = heard[len(heard) - 2 * _TAPS :]
        made = np.convolve(heard, self._filter, "valid")[self._skip :: 3].astype(np.float32)
        self._skip = (self._skip - len(doubled)) % 3
        return made


class Endings:
    """Smart Turn v3: whether what was said sounds like the end of a turn. Its input is Whisper's (Radford et al. 2022):
    80 log mels every 10 ms of the last 8 s."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)
        self._window = np.hanning(_FFT + 1)[:-1].astype(np.float32)
        self._filters = mel_filters()

    def probability(self, wave: np.ndarray) -> float:
        """float32 (num_samples,) at 16 kHz -> how likely the turn is over."""
        return float(self._session.run(None, {"input_features": self.features(wave)[None]})[0].reshape(-1)[0])

    def features(self, wave: np.ndarray) -> np.ndarray:
        """float32 (num_samples,) at 16 kHz -> float32 (80, 800)."""
        length = ENDING_SECONDS * RATE
        wave = wave[-length:].astype(np.float32)
        wave = np.pad(wave, (length - len(wave), 0))
        wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        padded = np.pad(wave, (_FFT // 2, _FFT // 2), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP][:-1]
        power = np.abs(np.fft.rfft(frames * self._window, axis=-1)) ** 2
        logs = np.log10(np.maximum(1e-10, power @ self._filters)).T
        return ((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


class Ears:
    """What all talks of a server hear with; loaded when the first begins. For any number of threads."""

    def __init__(self, endings: bool = True) -> None:
        self._wanted = endings
        self._loading = threading.Lock()

    def load(self) -> None:
        """Have everything at hand. Raises `InputError` with the command that installs what is missing."""
        with self._loading:
            _ = self._recogniser, self._activity, self.endings

    def activity(self) -> Activity:
        """For one more stream of sound."""
        return Activity(self._activity)

    def words(self, wave: np.ndarray) -> str:
        """What was said in float32 (num_samples,) at 24 kHz; empty where no word was."""
        said = self._recogniser.transcribe(torch.from_numpy(wave))
        return said if any(map(str.isalnum, said)) else ""

    def whole(self, wave: np.ndarray) -> bool | None:
        """Whether float32 (num_samples,) at 24 kHz sounds like the end of a turn; None where nobody can tell."""
        if self.endings is None:
            return None
        silence = np.zeros(round(SILENCE_SECONDS * RATE), np.float32)
        heard = np.concatenate([soxr.resample(wave, SAMPLE_RATE, RATE, quality="LQ"), silence])
        return self.endings.probability(heard) >= WHOLE

    @cached_property
    def endings(self) -> Endings | None:
        """Smart Turn, from PyPI's `pipecat-ai`, where that is installed."""
        path = _inside("pipecat", "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx")
        return Endings(path) if self._wanted and path is not None else None

    @cached_property
    def _activity(self) -> Any | None:
        path = _inside("silero_vad", "data/silero_vad_16k_op15.onnx")
        return _session(path) if path is not None else None

    @cached_property
    def _recogniser(self) -> recogniser.Recogniser:
        if "moonshine-tiny" not in recogniser.available():
            raise InputError(NO_EARS, "not_installed")
        return recogniser.load("moonshine-tiny")


def mel_filters() -> np.ndarray:
    """float64 (201, 80): Slaney's mel filters between 0 and 8 kHz, each of the same area."""
    step, log_step = 200.0 / 3, np.log(6.4) / 27.0
    highest = 15.0 + np.log(RATE / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, highest, _MELS + 2)
    edges = np.where(mels >= 15.0, 1000.0 * np.exp(log_step * (mels - 15.0)), step * mels)
    bins = np.linspace(0, RATE // 2, _FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


def _inside(package: str, file: str) -> Path | None:
    """A file inside an installed package, which is not imported; None without it, or without onnxruntime."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    path = Path(spec.origin).parent / file
    return path if path.is_file() else None


def _session(path: Path) -> Any:
    """The network in `path`, on one thread: a talk must not hold up the speech of others."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
