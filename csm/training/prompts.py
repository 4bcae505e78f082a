"""Make the shipped voice prompts again (`prompts/`): the six unshifted synthetic speakers, two sentences each.

The same recipe as the training speech (`csm/training/corpus.py`), so that the embedded model knows the voices;
the same synthesisers give the same files bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from csm.audio import write_audio
from csm.config import SAMPLE_RATE
from csm.training.corpus import SPEAKERS, load_engines, say

FLITE_TERMS = """\
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
ARCTIC_TERMS = """\
Carnegie Mellon University. Copyright (c) 2003. All Rights Reserved.
Permission to use, copy, modify, and licence this software and its documentation for any purpose, is hereby granted \
without fee, subject to the following conditions:
1. The code must retain the above copyright notice, this list of conditions and the following disclaimer.
2. Any modifications must be clearly marked as such.
3. Original authors' names are not deleted.
THE AUTHORS OF THIS WORK DISCLAIM ALL WARRANTIES WITH REGARD TO THIS SOFTWARE, INCLUDING ALL IMPLIED WARRANTIES OF \
MERCHANTABILITY AND FITNESS, IN NO EVENT SHALL THE AUTHORS BE LIABLE FOR ANY SPECIAL, INDIRECT OR CONSEQUENTIAL \
DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, \
NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.
See http://www.festvox.org/cmu_arctic/ for more details."""
LICENCES = {
    "flite": ("CMU Flite licence (permissive)", FLITE_TERMS),
    "rhvoice": ("CMU ARCTIC licence (permissive)", ARCTIC_TERMS),
}
ORIGINS = {
    "flite": "CMU Flite, voice cmu_us_{voice}, built by Carnegie Mellon University from the CMU ARCTIC recordings of "
    "{voice}; resampled to 24 kHz",
    "rhvoice": "RHVoice 1.6.0, voice {voice}, built by the RHVoice project from Carnegie Mellon University's CMU "
    "ARCTIC recordings of {voice}",
}


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
    "bdl": Prompt(
        "The ferry was crowded with cyclists yesterday. Someone played the accordion until we arrived.",
        "man, American",
    ),
    "clb": Prompt(
        "Our cousins grow strawberries behind the barn. Every June they share a basket with us.",
        "woman, American",
    ),
    "awb": Prompt(
        "Yesterday morning we visited an old castle. Hundreds of seabirds rested along the rocks.",
        "man, Scottish",
    ),
    "rms": Prompt(
        "Our neighborhood has a wonderful bookstore. The owner recommends something different every week.",
        "man, American",
    ),
    "ksp": Prompt(
        "Uncle George repairs bicycles in his garage. Children bring him broken wheels and squeaky brakes.",
        "man, Indian",
    ),
}


def make_prompts(folder: Path, rhvoice: Path | None = None) -> list[Path]:
    """Write one 16-bit 24 kHz mono wav a voice and `index.json` into `folder`; returns the wavs' paths.

    `rhvoice` is where RHVoice is installed. Raises `InputError` when it or Flite is not.
    """
    engines = load_engines(rhvoice)
    folder.mkdir(parents=True, exist_ok=True)
    entries, paths = [], []
    for name, prompt in PROMPTS.items():
        wave, _, _ = say(engines, prompt.transcript, name)
        paths.append(folder / f"{name}.wav")
        write_audio(paths[-1], torch.from_numpy(wave), SAMPLE_RATE)
        speaker = SPEAKERS[name]
        entries.append(
            {
                "name": name,
                "file": paths[-1].name,
                "transcript": prompt.transcript,
                "licence": LICENCES[speaker.engine][0],
                "origin": "Synthesised by this project (csm/training/prompts.py) with "
                + ORIGINS[speaker.engine].format(voice=speaker.voice)
                + "; its loudness changed.",
                "description": prompt.description,
            }
        )
    terms = {licence: text.splitlines() for licence, text in LICENCES.values()}
    index = json.dumps({"voices": entries, "licences": terms}, indent=2, ensure_ascii=False) + "\n"
    (folder / "index.json").write_text(index, encoding="utf-8")
    return paths
