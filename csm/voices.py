"""The voice library: names or files to voice prompts that are fit to be cloned, on their way into the context."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from csm.audio import inspect_audio, load_audio
from csm.checkpoint.hub import fetch_prompt
from csm.config import SAMPLE_RATE
from csm.errors import InputError

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"
SHORTEST = 1.0  # seconds of sound
LONGEST = 30.0  # seconds
SILENCE = 0.003  # RMS of the loudest window (-50 dBFS) below which a recording counts as silent
WINDOW = 480  # samples: the 20 ms over which loudness is judged
QUIET = 0.01  # windows 40 dB below the loudest are silence
LONG_SILENCE = 0.5  # seconds of silence at an edge that are cut ...
KEPT_SILENCE = 0.1  # ... down to this
LEVEL = 0.071  # RMS of the shipped voices' speech: -23 dB below full scale
LEVEL_RANGE = 3.0  # a voice within a third and three times `LEVEL` is left as it is


@dataclass(frozen=True)
class Voice:
    """A recording of one speaker and exactly what is said in it.

    With `published_bytes` the recording lies on the hub, at `path` in the model's repository, and is that long; see
    `fetched`.
    """

    name: str
    path: Path
    transcript: str
    licence: str = ""
    origin: str = ""
    description: str = ""
    published_bytes: int = 0


def shipped_voices() -> dict[str, Voice]:
    """The voices of `prompts/index.json`, by name, in its order."""
    return _listed("index.json", PROMPTS)


def official_voices() -> dict[str, Voice]:
    """The prompts that were published with CSM-1B, by name: their recordings stay on the hub until `fetched`."""
    return _listed("official.json", Path())


def fetched(voice: Voice) -> Voice:
    """The voice with its recording on this machine, downloaded if need be.

    Raises `InputError` when it can't be had, and when it isn't the recording that the transcript was written for.
    """
    if not voice.published_bytes:
        return voice
    path = fetch_prompt(voice.path.as_posix())
    if path.stat().st_size != voice.published_bytes:
        raise InputError(
            f"The recording of {voice.name} on the hub is no longer the one that its transcript was written for; "
            "choose another voice."
        )
    return replace(voice, path=path, published_bytes=0)


def find_voice(name_or_path: str, transcript: str | None = None) -> Voice:
    """A shipped or official voice by its name (in any case), or the voice in an audio file.

    What a file says comes from `transcript` or else from the text file beside it (`anna.wav`, `anna.txt`).
    Raises `InputError` when there is no such voice or file, or no transcript. The sound is checked later, by
    `load_prompt`.
    """
    wanted = str(name_or_path).strip()
    shipped = shipped_voices()
    for name, voice in (shipped | official_voices()).items():
        if name.casefold() == wanted.casefold():
            return voice
    path = Path(os.path.expanduser(wanted))
    if not wanted or not os.path.isfile(path):
        names = ", ".join(shipped)
        raise InputError(f"There is no voice or audio file “{wanted}”; the shipped voices are {names}.")
    text = " ".join((transcript or _transcript_beside(path)).split())
    if not any(character.isalnum() for character in text):
        raise InputError(
            f"The transcript of the voice {path.name} is missing; give the exact words of the recording, "
            f"for example in a file {path.stem}.txt beside it."
        )
    return Voice(path.stem, path, text)


def load_prompt(voice: Voice) -> Tensor:
    """The voice's recording as float32 (num_samples,), mono, 24 kHz, ready for the codec.

    Silence of more than 0.5 s at either end is cut to 0.1 s. A recording whose speech is more than three times
    louder or softer than the shipped voices is brought to their level. Raises `InputError` when the file is not
    audio, silent, shorter than 1 s (edges cut) or longer than 30 s, or can't be fetched.
    """
    voice = fetched(voice)
    seconds = inspect_audio(voice.path).seconds
    if seconds > LONGEST + 0.05:
        raise InputError(
            f"The voice {voice.path.name} is {seconds:.1f} s long and at most {LONGEST:.0f} s fit; "
            f"cut the recording and its transcript."
        )
    wave = load_audio(voice.path, LONGEST + 1)
    if (loudness := _loudness(wave)).max() < SILENCE:
        raise InputError(f"The voice {voice.path.name} is silent; record it again or choose another file.")
    sounding = loudness > QUIET * loudness.max()
    wave = _without_long_silence(wave, sounding)
    if len(wave) < SHORTEST * SAMPLE_RATE:
        raise InputError(
            f"The voice {voice.path.name} is too short with {len(wave) / SAMPLE_RATE:.1f} s of sound; "
            f"at least {SHORTEST:.0f} s is needed, and five to ten are better."
        )
    return wave * _gain(wave, float(loudness[sounding].square().mean().sqrt()))


def _listed(index: str, folder: Path) -> dict[str, Voice]:
    """The voices of an index in `prompts/`, by name, their recordings in `folder`."""
    entries = json.loads((PROMPTS / index).read_text(encoding="utf-8"))["voices"]
    voices = [Voice(path=folder / entry.pop("file"), **entry) for entry in entries]
    return {voice.name: voice for voice in voices}


def _transcript_beside(path: Path) -> str:
    try:
        return path.with_suffix(".txt").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The transcript {path.stem}.txt can't be read; save it as plain UTF-8 text.") from error


def _loudness(wave: Tensor) -> Tensor:
    """RMS of each 20 ms window: (num_samples,) -> (windows,)."""
    padded = torch.nn.functional.pad(wave, (0, -len(wave) % WINDOW))
    return padded.view(-1, WINDOW).square().mean(dim=1).sqrt()


def _without_long_silence(wave: Tensor, sounding: Tensor) -> Tensor:
    first, last = (int(index) for index in sounding.nonzero().flatten()[[0, -1]])
    begin, end = first * WINDOW, min(len(wave), (last + 1) * WINDOW)
    kept = int(KEPT_SILENCE * SAMPLE_RATE)
    if begin <= LONG_SILENCE * SAMPLE_RATE:
        begin = kept
    if len(wave) - end <= LONG_SILENCE * SAMPLE_RATE:
        end = len(wave) - kept
    return wave[begin - kept : end + kept]


def _gain(wave: Tensor, level: float) -> float:
    """How to bring speech of RMS `level` to that of the shipped voices without clipping; 1 when it is near."""
    if abs(math.log(level / LEVEL)) <= math.log(LEVEL_RANGE):
        return 1.0
    return min(LEVEL / level, 0.99 / float(wave.abs().max()))
