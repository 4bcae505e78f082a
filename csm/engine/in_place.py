"""Where streams speak on a CPU: each in its own context's memory, and their products in one batch.

Beside `Stage`, whose buffers never move so that a GPU can replay its work. Here nothing is copied or rounded up: a
stream alone takes the very steps that `Engine.step` takes, and one of several attends to its own positions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from csm.engine.context import Context
from csm.engine.stage import Launched
from csm.engine.threads import StepThreads
from csm.model import CSM, RowSampling, SideBySide, frame_noise
from csm.settings import Settings


@torch.inference_mode()
def next_frames(
    model: CSM, contexts: Sequence[Context], sampling: Sequence[Settings], noise: Sequence[torch.Generator]
) -> Tensor:
    """Sample a frame of each context, int64 (B, K), with its own sampling and generator, and feed it back."""
    alone, config = len(contexts) == 1, model.config
    states = [context.speaking_state() for context in contexts]
    drawn, vocab = None, config.audio_vocab_size
    if not all(one.greedy for one in sampling):
        drawn = frame_noise(noise, config.num_codebooks, vocab, states[0].device, sampling)
    alike = len({(one.temperature, one.topk, one.min_p) for one in sampling}) == 1
    how = sampling[0] if alike else RowSampling.new(sampling, vocab, states[0].device)
    codes = model.sample_frame(states[0] if alone else torch.cat(states), how, drawn)
    slot_ids = torch.tensor([context.slot_id for context in contexts], device=codes.device)
    embedded = model.embed_frames(codes, slot_ids).unsqueeze(1)
    caches = [context.cache for context in contexts]
    hidden = model.backbone(embedded, caches[0] if alone else SideBySide(caches))
    for context, state in zip(contexts, hidden.unbind()):
        context.state = state
    return codes


class InPlaceStage:
    """Slots 0 to `slots` - 1, none of which holds memory: contexts that speak, by slot. Not for two threads at once."""

    def __init__(self, model: CSM, slots: int) -> None:
        self.slots = slots
        self._model = model
        self._threads = StepThreads(model.config, model.projection.weight.device, model.in_graphs)
        self._contexts: dict[int, tuple[Context, Settings, int]] = {}  # with its length when it entered

    def enter(self, slot: int, context: Context, sampling: Settings, keep: bool = True) -> None:
        """Let a prefilled context, or a copy of it unless it is to `keep` what is spoken, speak in `slot`.

        Raises `ValueError` if nothing was prefilled."""
        context.speaking_state()
        own = context if keep else context.copy(context.cache.positions - context.length)
        self._contexts[slot] = own, sampling, own.length

    def launch(self, speaking: Mapping[int, torch.Generator]) -> Launched:
        """The next frame of the slots in `speaking`, with noise from their generators."""
        present = [self._contexts[slot] for slot in speaking]
        contexts, sampling = [one[0] for one in present], [one[1] for one in present]
        with self._threads.few():
            made = next_frames(self._model, contexts, sampling, list(speaking.values()))
        codes = made.new_zeros(max(speaking) + 1, made.shape[1])
        codes[list(speaking)] = made
        states = {slot: context.speaking_state()[0] for slot, context in zip(speaking, contexts)}
        return Launched(tuple(speaking), codes, states, None)

    def leave(self, slot: int, context: Context, frames: int, state: Tensor) -> None:
        """Let the context that entered `slot` go on behind the `frames` frames it spoke, at `state` (dim,)."""
        context.cache.length = self._contexts[slot][2] + frames
        context.state = state[None]

    def warm_up(self) -> None:
        """Nothing is compiled or recorded here that would depend on the number of streams."""
