"""Sound that libsndfile does not know, such as M4A, AAC, WebM, AMR and WMA, also out of films: the way in beside it.

ffmpeg decodes where it is installed, in a process of its own, and PyAV, which ships the same decoders, where not.
Files are foreign: only containers of sound and film are opened, nothing that they name is, and length and time are
bounded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.limits import LONGEST_SOUND, MOST_CHANNELS, RATES

PATIENCE = 30.0  # seconds of work for a file, and as long again for each minute of sound
BLOCK = 1 << 16  # bytes
TOO_MUCH = "{} holds more sound than is read; cut it, or save it with fewer samples per second."
LARGEST_PART = 1 << 28  # bytes that ffmpeg may ask for at once
# Demuxers of one file; playlists and lists of files, which make it open others, are not among them.
CONTAINERS = (
    "mov,matroska,webm,ogg,aac,loas,amr,amrnb,amrwb,asf,xwma,mp3,wav,w64,aiff,caf,flac,au,ac3,eac3,dts,tta,ape,wv,mpc,"
    "mpc8,mpeg,mpegts,avi,flv,rm,truehd,tak"
)


@dataclass(frozen=True)
class Foreign:
    """What is known of a file's first track of sound: seconds, samples per second, channels."""

    seconds: float
    sample_rate: int
    channels: int


def can_decode() -> bool:
    """Whether anything here decodes such files."""
    return _programs() or find_spec("av") is not None


def inspect(path: Path) -> Foreign | None:
    """What is known of the file, None when it holds no sound. A length that the file doesn't tell is counted."""
    found = _probed(path) if _programs() else _told(path)
    if found is None or not RATES[0] <= found.sample_rate <= RATES[1] or not 0 < found.channels <= MOST_CHANNELS:
        return None
    if found.seconds > 0:
        return found
    samples = sum(map(len, _blocks(path, LONGEST_SOUND)))
    return Foreign(samples / SAMPLE_RATE, found.sample_rate, found.channels) if samples else None


def decode(path: Path, seconds: float, whole: bool) -> np.ndarray | None:
    """The first `seconds` of a file, float32 (num_samples,), mono, 24 kHz; None when it holds no sound.

    Raises `InputError` when there is more and the `whole` is meant.
    """
    blocks = list(_blocks(path, min(LONGEST_SOUND, seconds) + whole))
    if whole and sum(map(len, blocks)) > seconds * SAMPLE_RATE:
        raise InputError(TOO_MUCH.format(path.name), "too_long")
    return np.concatenate(blocks) if blocks else None


def _blocks(path: Path, seconds: float) -> Iterator[np.ndarray]:
    """At most `seconds` of sound, float32 (num_samples,) each; what comes before damage, if there is some."""
    left = int(seconds * SAMPLE_RATE)
    for block in _from_program(path, seconds) if _programs() else _from_library(path, seconds):
        if left <= 0:
            return
        yield block[:left]
        left -= len(block)


def _programs() -> bool:
    return shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


def _input(path: Path) -> list[str]:
    guarded = ["-v", "error", "-max_alloc", str(LARGEST_PART), "-protocol_whitelist", "file"]
    return [*guarded, "-format_whitelist", CONTAINERS, "-i", f"file:{path}"]


def _probed(path: Path) -> Foreign | None:
    wanted = "stream=sample_rate,channels,duration:format=duration"
    command = ["ffprobe", "-select_streams", "a:0", "-show_entries", wanted, "-of", "json", *_input(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        told = json.loads(done.stdout)
        stream = told["streams"][0]
        seconds = stream.get("duration") or told.get("format", {}).get("duration") or 0
        return Foreign(float(seconds), int(stream["sample_rate"]), int(stream["channels"]))
    except (OSError, ValueError, LookupError, subprocess.SubprocessError):
        return None


def _from_program(path: Path, seconds: float) -> Iterator[np.ndarray]:
    """What ffmpeg decodes; it is ended when nobody asks on, or when its time is over."""
    made = ["-map", "0:a:0", "-t", f"{seconds + 1:.3f}", "-ac", "1", "-ar", f"{SAMPLE_RATE}", "-f", "f32le", "pipe:1"]
    command = ["ffmpeg", "-nostdin", *_input(path), *made]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        clock = threading.Timer(PATIENCE * (1 + seconds / 60), program.kill)
        clock.start()
        try:
            assert program.stdout is not None
            while data := program.stdout.read(BLOCK):
                yield np.frombuffer(data[: len(data) // 4 * 4], np.float32)
        finally:
            clock.cancel()
            program.kill()


def _opened(path: Path) -> Any:
    import av

    only = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    return av.open(str(path), options=only, timeout=PATIENCE)


def _told(path: Path) -> Foreign | None:
    import av

    try:
        with _opened(path) as container:
            stream = container.streams.audio[0]
            length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
            return Foreign(float(length), int(stream.rate or 0), int(stream.channels or 0))
    except (av.error.FFmpegError, OSError, ValueError, LookupError):
        return None


def _from_library(path: Path, seconds: float) -> Iterator[np.ndarray]:
    """What PyAV decodes until its time is over."""
    import av

    end = time.monotonic() + PATIENCE * (1 + seconds / 60)
    try:
        with _opened(path) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(container.streams.audio[0]):
                for made in resampler.resample(frame):
                    yield made.to_ndarray()[0]
                if time.monotonic() > end:
                    return
            for made in resampler.resample(None):
                yield made.to_ndarray()[0]
    except (av.error.FFmpegError, OSError, ValueError, LookupError):
        return
