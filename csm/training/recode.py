"""A codec learned on and its codes moved: how a language model goes on with them.

The same speech was coded before and after. A code's embedding, and its row of the head, becomes the mean of those of
the codes that stood in its place before: it means what they meant. What was learned about text, turns and voices stays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csm.errors import InputError
from csm.model import CSM

PRIOR = 0.5  # frames: a code that was never heard means what codes mean on average


def stood_for(before: Path, now: Path, codebooks: int, size: int) -> Tensor:
    """How often each code of `now` stands where a code of `before` stood, in the shards that both folders have, as
    shares: float32 (codebooks, size, size), new code by old. Raises `InputError` where no shard is in both."""
    counts = np.zeros((codebooks, size, size))
    for file in sorted(Path(now).glob("codes-*.npy")):
        if not (Path(before) / file.name).exists():
            continue
        old, new = np.load(Path(before) / file.name), np.load(file)
        if old.shape != new.shape or old.shape[1] != codebooks:
            raise InputError(
                f"{file.name} in {before} has other frames than in {now}: they are not of the same speech."
            )
        for book in range(codebooks):
            np.add.at(counts[book], (new[:, book].astype(int), old[:, book].astype(int)), 1)
    if not counts.any():
        raise InputError(f"{before} and {now} have no shard in common: make both from the same speech.")
    usual = counts.sum(1, keepdims=True) / counts.sum((1, 2), keepdims=True)
    shares = (counts + PRIOR * usual) / (counts.sum(2, keepdims=True) + PRIOR)
    return torch.from_numpy(shares).float()


@torch.no_grad()
def carry_over(model: CSM, before: Path, now: Path) -> None:
    """Let `model`, which speaks the codes in `before`, begin with those in `now`. Raises `InputError`."""
    config = model.config
    books, size, vocabulary = config.num_codebooks, config.codec.codebook_size, config.audio_vocab_size
    shares = stood_for(before, now, books, size)
    table = model.audio_embeddings.weight
    for book in range(books):
        place = slice(book * vocabulary, book * vocabulary + size)
        mean = shares[book] @ table[place]
        table[place] = mean * (table[place].norm(dim=1).mean() / mean.norm(dim=1).mean()).sqrt()  # means are short
        if book == 0:
            model.codebook0_head.weight[:size] = shares[0] @ model.codebook0_head.weight[:size]
        else:
            model.audio_head[book - 1, :, :size] = model.audio_head[book - 1, :, :size] @ shares[book].T
