"""Make the shipped voice prompts again (`prompts/`): the five synthetic speakers, two everyday sentences each.

The same recipe as the training speech (`csm/training/corpus.py`), so that the embedded model knows the voices;
the same Flite gives the same files bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from csm.audio import write_audio
from csm.config import SAMPLE_RATE
from csm.training.corpus import SPEAKERS, say
from csm.training.flite import Flite

LICENCE = "CMU Flite licence (permissive)"
TERMS = """\
Copyright (c) 1999-2001 Language Technologies Institute, Carnegie Mellon University. All Rights Reserved.
Authors: Language Technologies Institute, Alan W Black, David Huggins-Daines and others.
Permission is hereby granted, free of charge, to use and distribute this software and its documentation without \
restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, \
and/or sell copies of this work, and to permit persons to whom this work is furnished to do so, subject to the \
following conditions:
1. The code must retain the above copyright notice, this list of conditions and the following disclaimer.
2. Any modifications must be clearly marked as such.
3. Original authors' names are not deleted.
4. The authors' names are not used to endorse or promote products derived from this software without specific prior \
written permission.
CARNEGIE MELLON UNIVERSITY AND THE CONTRIBUTORS TO THIS WORK DISCLAIM ALL WARRANTIES WITH REGARD TO THIS SOFTWARE, \
INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS, IN NO EVENT SHALL CARNEGIE MELLON UNIVERSITY NOR THE \
CONTRIBUTORS BE LIABLE FOR ANY SPECIAL, INDIRECT OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM \
LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF \
OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE."""


@dataclass(frozen=True)
class Prompt:
    """What a shipped voice says, and what it sounds like in a few words."""

    transcript: str
    description: str


PROMPTS: dict[str, Prompt] = {
    "slt": Prompt(
        "My grandmother always baked apple pies on Sundays. Everybody sat together around her table.",
        "woman, American",
    ),
    "rms": Prompt(
        "Our neighborhood has a wonderful bookstore. The owner recommends something different every week.",
        "man, American",
    ),
    "awb": Prompt(
        "Yesterday morning we visited an old castle. Hundreds of seabirds rested along the rocks.",
        "man, Scottish",
    ),
    "slt-low": Prompt(
        "Several musicians performed outside this afternoon. People stopped to listen and clapped.",
        "woman with a deep voice, American (slt lowered to 0.85 times its pitch)",
    ),
    "rms-high": Prompt(
        "The mountains looked beautiful after the storm. We photographed every valley before breakfast.",
        "man with a light voice, American (rms raised to 1.18 times its pitch)",
    ),
}


def make_prompts(folder: Path) -> list[Path]:
    """Write one 16-bit 24 kHz mono wav a voice and `index.json` into `folder`; returns the wavs' paths.

    Raises `InputError` when Flite is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    engine = Flite()
    entries, paths = [], []
    for name, prompt in PROMPTS.items():
        wave, _, _ = say(engine, prompt.transcript, name)
        paths.append(folder / f"{name}.wav")
        write_audio(paths[-1], torch.from_numpy(wave), SAMPLE_RATE)
        speaker = SPEAKERS[name]
        entries.append(
            {
                "name": name,
                "file": paths[-1].name,
                "transcript": prompt.transcript,
                "licence": LICENCE,
                "origin": f"Synthesised by this project (csm/training/prompts.py) with CMU Flite, voice cmu_us_"
                f"{speaker.voice}, built by Carnegie Mellon University from the CMU ARCTIC recordings; "
                + (
                    "resampled to 24 kHz."
                    if speaker.pitch == 1
                    else f"modified: pitch times {speaker.pitch}, resampled to 24 kHz."
                ),
                "description": prompt.description,
            }
        )
    index = (
        json.dumps({"voices": entries, "licences": {LICENCE: TERMS.splitlines()}}, indent=2, ensure_ascii=False) + "\n"
    )
    (folder / "index.json").write_text(index, encoding="utf-8")
    return paths
