"""Audio files to waveforms and back: the way in for voice prompts, and the last step from script to sound."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from csm import foreign
from csm.config import SAMPLE_RATE
from csm.errors import InputError

FORMATS: dict[str, tuple[str, str]] = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
}
# What plays a file from the command line, and the formats it is asked to; the first that is installed does it.
PLAYERS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("paplay",), (".wav", ".flac", ".ogg")),
    (("aplay", "-q"), (".wav",)),
    (("afplay",), (".wav", ".flac", ".mp3")),
    (("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"), tuple(FORMATS)),
)


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: length in seconds, samples per second, channels."""

    seconds: float
    sample_rate: int
    channels: int


def inspect_audio(path: str | Path) -> AudioInfo:
    """Read a file's header, and the rest only where that doesn't tell the length. Raises `InputError` when the file is
    missing or not audio."""
    with _open(path) as file:
        if file is not None and file.frames:
            return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)
        if (found := foreign.inspect(Path(path)) if foreign.can_decode() else None) is not None:
            return AudioInfo(found.seconds, found.sample_rate, found.channels)
        if file is not None:
            return AudioInfo(0.0, file.samplerate, file.channels)
    raise _unreadable(path)


def load_audio(path: str | Path, max_seconds: float | None = None) -> Tensor:
    """A file of sound, or a film's, of any kind and rate -> float32 (num_samples,), mono, 24 kHz, within [-1, 1].

    Channels are averaged; samples that are not numbers count as zero; a file louder than full scale is turned
    down to it. `max_seconds` bounds what is decoded: later sound is left unread (`inspect_audio` knows the
    length). Raises `InputError` when the file is missing, not audio, or empty.
    """
    samples, rate = _samples(path, max_seconds)
    if not len(samples):
        raise InputError(f"{Path(path).name} holds no sound; record or choose another file.")
    mono = np.nan_to_num(samples, copy=False, nan=0.0, posinf=0.0, neginf=0.0).mean(axis=1, dtype=np.float32)
    return _within_full_scale(resample(torch.from_numpy(mono), rate, SAMPLE_RATE))


def resample(wave: Tensor, from_rate: float, to_rate: float) -> Tensor:
    """float32 (num_samples,) at `from_rate` Hz -> float32 (num_samples * to_rate / from_rate,) at `to_rate` Hz."""
    if from_rate == to_rate:
        return wave
    return torch.from_numpy(soxr.resample(wave.detach().cpu().float().numpy(), from_rate, to_rate))


def check_output(path: str | Path) -> None:
    """Raise `InputError` when `write_audio` could not write there; ask before an hour of work, not after it."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        names = ", ".join(FORMATS)
        raise InputError(f"{path.name} can't be written: end the name of the audio file in one of {names}.")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the name of an audio file.")
    if not os.path.isdir(path.parent):
        raise InputError(f"There is no folder {path.parent}; make it first or choose another place for {path.name}.")


def write_audio(path: str | Path, wave: Tensor, sample_rate: int = SAMPLE_RATE) -> None:
    """Write float32 (num_samples,) as the suffix says: .wav and .flac (16 bit), .mp3, .ogg.

    The file appears whole or not at all: it is written beside its place and then renamed. Samples beyond [-1, 1]
    are clipped. Raises `InputError` when the suffix is unknown or the place can't be written.
    """
    check_output(path)
    if wave.ndim != 1:
        raise ValueError(f"A waveform has one dimension, not {wave.ndim}.")
    path = Path(path)
    kind, subtype = FORMATS[path.suffix.lower()]
    samples = np.nan_to_num(wave.detach().cpu().float().numpy(), nan=0.0).clip(-1.0, 1.0)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            soundfile.write(file, samples, sample_rate, format=kind, subtype=subtype)
        part.replace(path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{path} can't be written; choose another place or make room there.") from error
    finally:
        if os.path.lexists(part):
            part.unlink()


def play_audio(path: str | Path) -> bool:
    """Play a file to its end with a program of this machine; False where none that is there can."""
    for command, formats in PLAYERS:
        if Path(path).suffix.lower() in formats and shutil.which(command[0]):
            played = subprocess.run([*command, str(path)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if played.returncode == 0:
                return True
    return False


def _samples(path: str | Path, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """The one place where sound is decoded: float32 (num_samples, channels) and their rate, at most `max_seconds`."""
    with _open(path) as file:
        if file is not None and file.frames:
            count = -1 if max_seconds is None else int(max_seconds * file.samplerate)
            try:
                return file.read(count, np.float32, always_2d=True), file.samplerate
            except (soundfile.LibsndfileError, MemoryError) as error:
                raise _unreadable(path) from error
        # A stream's header doesn't know its length, and says 0.
        wave = foreign.decode(Path(path), max_seconds) if foreign.can_decode() else None
        if wave is None and file is None:
            raise _unreadable(path)
    return (np.zeros((0, 1), np.float32) if wave is None else wave[:, None]), SAMPLE_RATE


@contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile | None]:
    """The file as libsndfile knows it; None for one that it doesn't know."""
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give an audio file.")
    if not os.path.exists(path):
        raise InputError(f"There is no audio file {path}.")
    try:
        file = soundfile.SoundFile(path)
    # A suffix such as .raw makes soundfile ask for a rate, which is a TypeError.
    except (OSError, soundfile.LibsndfileError, TypeError):
        yield None
        return
    with file:
        yield file


def _unreadable(path: str | Path) -> InputError:
    if not foreign.can_decode():
        needed = "without ffmpeg or PyAV: run `pip install av`, or use WAV, FLAC, OGG or MP3."
        return InputError(f"{Path(path).name} can't be read {needed}")
    return InputError(f"{Path(path).name} is not audio that can be read; use WAV, FLAC, OGG or MP3.")


def _within_full_scale(wave: Tensor) -> Tensor:
    peak = float(wave.abs().max()) if len(wave) else 0.0
    return wave / peak if peak > 1.0 else wave
