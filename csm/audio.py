"""Audio files to waveforms and back: the way in for voice prompts, and the last step from script to sound."""

from __future__ import annotations

import os
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
from csm.files import output
from csm.limits import LONGEST_SOUND, MOST_CHANNELS, MOST_SAMPLES, RATES

BLOCK = 1 << 20  # samples of all channels that are decoded, or written, at once
LONGEST_AT_ONCE = 8_000_000  # samples that are resampled in one go

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
    length). Raises `InputError` when the file is missing, not audio, empty, or would take more than
    `csm.limits` allows to decode.
    """
    wanted = LONGEST_SOUND if max_seconds is None else max_seconds
    with _open(path) as file:
        if file is not None and file.frames:
            wave = _decoded(path, file, wanted, max_seconds is None)
        else:  # a stream's header doesn't know its length, and says 0
            found = foreign.decode(Path(path), wanted, max_seconds is None) if foreign.can_decode() else None
            if found is None and file is None:
                raise _unreadable(path)
            wave = np.zeros(0, np.float32) if found is None else found
    if not len(wave):
        raise InputError(f"{Path(path).name} holds no sound; record or choose another file.")
    return _within_full_scale(torch.from_numpy(wave))


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
    samples = wave.detach().cpu().float().numpy()
    with (
        output(path, soundfile.LibsndfileError) as part,
        open(part, "xb") as file,
        soundfile.SoundFile(file, "w", sample_rate, 1, subtype, format=kind) as sound,
    ):
        for at in range(0, len(samples), BLOCK):
            sound.write(np.nan_to_num(samples[at : at + BLOCK], nan=0.0).clip(-1.0, 1.0))


def play_audio(path: str | Path) -> bool:
    """Play a file to its end with a program of this machine; False where none that is there can."""
    for command, formats in PLAYERS:
        if Path(path).suffix.lower() in formats and shutil.which(command[0]):
            played = subprocess.run([*command, str(path)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if played.returncode == 0:
                return True
    return False


def _decoded(path: str | Path, file: soundfile.SoundFile, wanted: float, whole: bool) -> np.ndarray:
    """The first `wanted` seconds, float32 (num_samples,); more than that is refused where the `whole` is meant."""
    rate = file.samplerate
    if (whole and file.frames > wanted * rate) or min(file.frames, wanted * rate) * file.channels > MOST_SAMPLES:
        raise InputError(foreign.TOO_MUCH.format(Path(path).name), "too_long")
    try:
        pieces = _resampled(_mono(file, int(wanted * rate)), rate, min(file.frames, int(wanted * rate)))
        return np.concatenate([np.zeros(0, np.float32), *pieces])
    # libsndfile's own errors, and those of its bindings, are many.
    except (soundfile.SoundFileError, MemoryError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise _unreadable(path) from error


def _mono(file: soundfile.SoundFile, most: int) -> Iterator[np.ndarray]:
    """At most `most` samples, float32 (num_samples,), piece by piece: a header may claim more than there is."""
    while most > 0:
        samples = file.read(min(most, max(1, BLOCK // file.channels)), np.float32, always_2d=True)
        if not len(samples):
            return
        most -= len(samples)
        yield np.nan_to_num(samples, copy=False, nan=0.0, posinf=0.0, neginf=0.0).mean(axis=1, dtype=np.float32)


def _resampled(pieces: Iterator[np.ndarray], rate: int, expected: int) -> Iterator[np.ndarray]:
    """The `pieces` at 24 kHz; long ones as they come, so that no more than the result is in memory."""
    if rate == SAMPLE_RATE:
        yield from pieces
    elif expected <= LONGEST_AT_ONCE:
        yield resample(torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *pieces])), rate, SAMPLE_RATE).numpy()
    else:
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        for piece in pieces:
            yield stream.resample_chunk(piece)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


@contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile | None]:
    """The file as libsndfile knows it; None for one that it doesn't know. Raises `InputError` for a header beyond
    `csm.limits`."""
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give an audio file.")
    if not os.path.exists(path):
        raise InputError(f"There is no audio file {path}.")
    try:
        file = soundfile.SoundFile(path)
    # A suffix such as .raw makes soundfile ask for a rate, which is a TypeError; a null in the path is a ValueError.
    except (OSError, soundfile.SoundFileError, RuntimeError, TypeError, ValueError):
        yield None
        return
    with file:
        if not (RATES[0] <= file.samplerate <= RATES[1] and 1 <= file.channels <= MOST_CHANNELS and file.frames >= 0):
            raise InputError(
                f"{path.name} says that it has {file.channels} channels of {file.samplerate} samples per second; at "
                f"most {MOST_CHANNELS} of {RATES[0]:,} to {RATES[1]:,} are read.",
                "too_long",
            )
        yield file


def _unreadable(path: str | Path) -> InputError:
    if not foreign.can_decode():
        needed = "without ffmpeg or PyAV: run `pip install av`, or use WAV, FLAC, OGG or MP3."
        return InputError(f"{Path(path).name} can't be read {needed}")
    return InputError(f"{Path(path).name} is not audio that can be read; use WAV, FLAC, OGG or MP3.")


def _within_full_scale(wave: Tensor) -> Tensor:
    peak = float(wave.abs().max()) if len(wave) else 0.0
    return wave / peak if peak > 1.0 else wave
