"""How sure the model is of a clip: the probability it gives to each frame's codes, having read what comes before.

Teacher forcing: codes go in, nothing is sampled. Beside the way from script to sound, over the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.engine.frames import Rows, Segment, audio_rows
from csm.errors import InputError
from csm.speech.generator import Generator

DEPTH_BATCH = 64  # frames that the depth decoder reads at a time


@dataclass(frozen=True)
class Confidence:
    """Probabilities at temperature 1, float32 (frames,): of code 0, and the mean over the codes of the depth decoder.

    `context` counts the segments that were heard before; older ones did not fit.
    """

    first: Tensor
    rest: Tensor
    context: int = 0


@torch.inference_mode()
def confidence(
    generator: Generator, text: str, codes: Tensor, context: Sequence[Segment] = (), speaker: int = 0
) -> Confidence:
    """The model's probabilities for codes int64 (frames, K) as `text` said by `speaker` after `context`.

    The newest segments of the context are heard, as many as fit. Raises `InputError` when text and codes alone don't
    fit, when there is nothing to say, and when the codes are not this model's.
    """
    model, config, written = generator.engine.model, generator.config, generator.prompts.format
    said, frames = generator.turn_rows(text, speaker), len(codes)
    if codes.ndim != 2 or codes.shape[1] != config.num_codebooks or not frames:
        raise InputError(
            f"The codes have shape {tuple(codes.shape)}; this model needs (frames, {config.num_codebooks})."
        )
    free = config.max_positions - len(said) - frames
    if free < 0:
        raise InputError("The clip and its text are longer than the model's memory: choose a shorter clip.")
    parts: list[Rows] = []
    for segment in reversed(context):
        rows = written.turn(segment.text, segment.speaker, generator.segment_codes(segment))
        if len(rows) > free:
            break
        free -= len(rows)
        parts.insert(0, rows)
    rows = Rows.join([*parts, said, audio_rows(codes.to(torch.int64).cpu(), written.slot_id(speaker))])
    ids, mask = rows.ids.to(generator.device), rows.mask.to(generator.device)
    hidden = model.backbone(model.embed_rows(ids[None], mask[None]))[0]
    states, wanted = hidden[-frames - 1 : -1], ids[-frames:, :-1]
    first = model.codebook0_head(states).float().softmax(-1).gather(1, wanted[:, :1])[:, 0]
    rest = []
    for at in range(0, frames, DEPTH_BATCH):
        some = wanted[at : at + DEPTH_BATCH]
        logits = model.depth_logits(states[at : at + DEPTH_BATCH], some).float()
        rest.append(logits.softmax(-1).gather(2, some[:, 1:, None])[..., 0].mean(dim=1))
    return Confidence(first.cpu(), torch.cat(rest).cpu(), len(parts))
