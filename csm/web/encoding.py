"""A waveform to the bytes of a sound file while it is still being made: the end of the way to a program's request."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from dataclasses import dataclass

import numpy as np
import soundfile

from csm.config import SAMPLE_RATE
from csm.errors import InputError

BLOCK = 1 << 20  # samples that are converted at once
OPEN_END = 0xFFFFFFFF  # the length in the header of a WAV whose length is not known yet
NO_AAC = "This server has no ffmpeg and can't write aac; ask for mp3, opus, wav, flac or pcm."


@dataclass(frozen=True)
class Format:
    """A way to write sound: its media type, what libsndfile calls it (`None` where it is not asked), and whether a
    stream of it is complete without knowing its length."""

    media_type: str
    container: str | None = None
    subtype: str | None = None
    streams: bool = True
    settings: tuple[tuple[str, str | float], ...] = ()


FORMATS: dict[str, Format] = {
    # A constant rate, because the header of a variable one counts frames that are not there yet. libsndfile takes the
    # mode only together with a level: this one is 80 kbit/s.
    "mp3": Format(
        "audio/mpeg", "MP3", "MPEG_LAYER_III", settings=(("bitrate_mode", "CONSTANT"), ("compression_level", 0.5))
    ),
    "opus": Format("audio/ogg", "OGG", "OPUS"),
    "aac": Format("audio/aac", streams=False),
    "flac": Format("audio/flac", "FLAC", "PCM_16", streams=False),
    "wav": Format("audio/wav", streams=False),
    "pcm": Format("audio/pcm"),
}


class _Growing(io.RawIOBase):
    """A file in memory whose new bytes can be taken; libsndfile returns to the header when it closes one."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.position = 0
        self.taken = 0

    def write(self, data) -> int:
        piece = bytes(data)
        self.data[self.position : self.position + len(piece)] = piece
        self.position += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.data)}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def take(self) -> bytes:
        new = bytes(self.data[self.taken :])
        self.taken = len(self.data)
        return new


class Encoder:
    """One clip on its way out: `write` gives the bytes that are ready, `finish` the rest, in order.

    `whole` encodes a finished clip instead, with its length in the header where the format has a place for it.
    """

    def __init__(self, name: str) -> None:
        self.format = FORMATS[name]
        self.name = name
        self._begun = False
        self._sink = _Growing()
        self._file: soundfile.SoundFile | None = None

    def write(self, wave: np.ndarray) -> bytes:
        """float32 (num_samples,) at 24 kHz -> the bytes that are ready."""
        if self.format.container is None:
            head = b"" if self._begun or self.name != "wav" else wav_header(OPEN_END)
            self._begun = True
            return head + samples(wave).tobytes()
        self._open().write(samples(wave))
        return self._sink.take()

    def finish(self) -> bytes:
        if self.format.container is None:
            return b""
        self._open().close()
        return self._sink.take()

    def whole(self, wave: np.ndarray) -> bytes:
        """float32 (num_samples,) at 24 kHz -> a complete file. Raises `InputError` where aac can't be written."""
        if self.name == "aac":
            return _aac(samples(wave).tobytes())
        if self.format.container is None:
            data = samples(wave).tobytes()
            return (wav_header(len(data)) if self.name == "wav" else b"") + data
        self._open().write(samples(wave))
        self._open().close()
        return bytes(self._sink.data)

    def _open(self) -> soundfile.SoundFile:
        if self._file is None:
            form = self.format
            self._file = soundfile.SoundFile(
                self._sink, "w", SAMPLE_RATE, 1, form.subtype, format=form.container, **dict(form.settings)
            )
        return self._file


def check_format(name: str) -> None:
    """Raise `InputError` when this machine can't write the format."""
    if name == "aac" and not shutil.which("ffmpeg"):
        raise InputError(NO_AAC)


def samples(wave: np.ndarray) -> np.ndarray:
    """float32 (num_samples,) -> int16, little-endian; beyond [-1, 1] is clipped."""
    made = np.empty(len(wave), "<i2")
    for at in range(0, len(wave), BLOCK):  # an hour of sound is there once, not four times
        made[at : at + BLOCK] = np.round(wave[at : at + BLOCK].clip(-1.0, 1.0) * 32_767)
    return made


def wav_header(data_bytes: int) -> bytes:
    """The 44 bytes in front of 16-bit mono at 24 kHz; `OPEN_END` leaves the length open."""
    riff = OPEN_END if data_bytes == OPEN_END else 36 + data_bytes
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16
    )
    return head + struct.pack("<4sI", b"data", data_bytes)


def _aac(pcm: bytes) -> bytes:
    command = ["ffmpeg", "-v", "error", "-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "-"]
    try:
        done = subprocess.run([*command, "-c:a", "aac", "-f", "adts", "-"], input=pcm, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(NO_AAC) from error
    return done.stdout
