"""One web page with everything in it that people need to compare pairs: no server, no network, and no account.

It works from a disk and as a static Space alike. What a listener chose leaves as a JSON file that the page offers at
the end, for `csm evaluate --cmos-read`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.evaluation.preference.pairs import Pair
from csm.evaluation.pronunciation.lists import FOLDER
from csm.files import output
from csm.watermark import mark

FORMAT = "csm-cmos-1"
DATA = "/*DATA*/null"


def write_page(target: Path, pairs: Sequence[Pair], model: str) -> str:
    """Write the page, whole or not at all -> the study's name, which its results carry. Raises `InputError`."""
    study = study_of(pairs, model)
    data = {"format": FORMAT, "study": study, "model": model, "pairs": [_pair(pair) for pair in pairs]}
    text = (FOLDER / "cmos.html").read_text(encoding="utf-8")
    filled = text.replace(DATA, json.dumps(data, ensure_ascii=False).replace("</", "<\\/"))
    with output(target) as part:
        part.write_text(filled, encoding="utf-8")
    return study


def study_of(pairs: Sequence[Pair], model: str) -> str:
    """A name for these pairs of this model: other sounds, another name."""
    digest = hashlib.sha256(model.encode())
    for pair in pairs:
        digest.update(pair.name.encode())
        for wave in pair.sides.values():
            digest.update(wave.numpy().tobytes())
    return digest.hexdigest()[:12]


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "name": pair.name,
        "kind": pair.kind,
        "text": pair.text,
        "before": list(pair.before),
        "context": _sound(pair.context),
        "sides": {name: _sound(wave) for name, wave in pair.sides.items()},
    }


def _sound(wave: Tensor) -> str:
    """A watermarked FLAC file as a data URI."""
    file = io.BytesIO()
    soundfile.write(file, mark(wave).clamp(-1, 1).numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(file.getvalue()).decode()
