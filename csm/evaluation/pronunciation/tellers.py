"""Speech whose pronunciation is known, because it was asked for in phones: what the judge itself is measured on.

eSpeak NG comes with most Linux distributions and says a word in its own phone letters. Kokoro, the teacher of the
recipe (`csm/training/kokoro.py`), sounds like people, so its speech says more about the judge; four of its voices that
no training has heard speak here.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.evaluation.pronunciation.lists import Choice
from csm.evaluation.pronunciation.phones import ESPEAK, IPA, written
from csm.training.kokoro import KEPT_FOR_TESTS, Kokoro, Style


class Teller(Protocol):
    """Who says a choice's text with the word said as asked. `name` stands beside the figures."""

    name: str

    def say(self, choice: Choice, voice: int = 0) -> Tensor: ...

    def read(self, text: str, voice: int = 0) -> Tensor: ...


class Espeak:
    """eSpeak NG. Raises `InputError` where it is missing."""

    name = "eSpeak NG"
    VOICES = ("en-us", "en-us+f3", "en-us+m3", "en-us+f2")

    def __init__(self) -> None:
        self._program = shutil.which("espeak-ng")
        if self._program is None:
            raise InputError("eSpeak NG is missing: install the Debian package espeak-ng.")

    def say(self, choice: Choice, voice: int = 0) -> Tensor:
        """float32 (num_samples,) at 24 kHz, the word said the choice's way."""
        before, after = choice.around()
        return self.read(f"{before}[[{written(choice.ways[choice.right], ESPEAK)}]]{after}", voice)

    def read(self, text: str, voice: int = 0) -> Tensor:
        """float32 (num_samples,) at 24 kHz of a text as it is."""
        assert self._program is not None
        command = [self._program, "-v", self.VOICES[voice % len(self.VOICES)], "-s", "160", "--stdout", text]
        wave, rate = soundfile.read(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout))
        return resample(torch.from_numpy(wave).float(), rate, SAMPLE_RATE)


class KokoroTeller:
    """The recipe's teacher, its weights and voices in a folder as `train data --natural` takes it.

    Raises `InputError` for what is missing.
    """

    name = "Kokoro-82M"

    def __init__(self, folder: Path) -> None:
        files = [folder / "voices" / f"{name}.bin" for name in sorted(KEPT_FOR_TESTS)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise InputError(f"There are no voices {', '.join(missing)} in {folder}/voices: unpack those of kokoro-js.")
        self._engine = Kokoro(folder)
        self._styles = [
            Style(file.stem, file.stem[0] == "b", np.fromfile(file, np.float32).reshape(-1, 256)) for file in files
        ]

    def say(self, choice: Choice, voice: int = 0) -> Tensor:
        """float32 (num_samples,) at 24 kHz, the word said the choice's way."""
        style = self._styles[voice % len(self._styles)]
        before, after = (self._engine.phonemes(part, style.british) if part.strip() else "" for part in choice.around())
        mark = choice.around()[1][:1]
        word = written(choice.ways[choice.right], IPA) + (mark if mark in ",.?!;" else "")
        return torch.from_numpy(self._engine.pronounce(f"{before} {word} {after.lstrip(',.?!; ')}".strip(), style))

    def read(self, text: str, voice: int = 0) -> Tensor:
        """float32 (num_samples,) at 24 kHz of a text as it is."""
        style = self._styles[voice % len(self._styles)]
        return torch.from_numpy(self._engine.speak(text, style)[0])


def teller(folder: Path | None = None) -> Teller:
    """Kokoro from its `folder` or, without one, eSpeak NG. Raises `InputError` for what is missing."""
    return KokoroTeller(folder) if folder else Espeak()
