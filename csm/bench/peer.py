"""transformers' CSM on the same weights, in the same process: what our frames are compared with.

Its own `generate` runs, greedily and without decoding any sound; a frame's time is that between two of its frames.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csm.bench.machine import synchronise
from csm.checkpoint import layouts
from csm.checkpoint.configs import to_json
from csm.checkpoint.tensors import Stored
from csm.config import MimiConfig, ModelConfig
from csm.engine.frames import Rows
from csm.model import CSM
from csm.settings import Settings
from csm.speech.generator import Generator

GREEDY = Settings(temperature=1.0, topk=1)


class Peer:
    """transformers' `CsmForConditionalGeneration` with the weights of `model`, shared where the precision allows."""

    def __init__(self, model: CSM, dtype: torch.dtype = torch.bfloat16) -> None:
        import transformers
        from transformers import CsmConfig, CsmForConditionalGeneration

        transformers.logging.set_verbosity_error()
        self.version = transformers.__version__
        self.device = model.projection.weight.device
        config = CsmConfig.from_dict(to_json(_without_codec(model.config)))
        with torch.device("meta"):
            theirs = CsmForConditionalGeneration(config)
        tensors = {name: Stored.of(tensor.detach()) for name, tensor in model.state_dict().items()}
        stored = layouts.to_transformers(tensors, model.config)
        given = theirs.load_state_dict(
            {name: tensor.load(dtype) for name, tensor in stored.items()}, strict=False, assign=True
        )
        assert not given.unexpected_keys and all(name.startswith(layouts.CODEC) for name in given.missing_keys), given
        _fill_buffers(theirs, model.config, self.device)
        self._model: Any = theirs.eval().requires_grad_(False)

    @torch.inference_mode()
    def speak(self, ids: Tensor, frames: int) -> tuple[Tensor, list[float]]:
        """Text ids int64 (S,) -> codes of the `frames` frames after them, int64 (frames, K), and the seconds of each
        but the first, whose time is the prefill's too."""
        clock = _Clock(self.device)
        ids = ids[None].to(self.device)
        codes = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=frames,
            do_sample=False,
            depth_decoder_do_sample=False,
            streamer=clock,
        )
        return codes[0].cpu(), clock.seconds()[1:]


class _Clock:
    """Told of the prompt and of every frame, as a streamer is."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._times = device, list[float]()

    def put(self, value: Tensor) -> None:
        synchronise(self._device)
        self._times.append(time.perf_counter())

    def end(self) -> None: ...

    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self._times, self._times[1:])]


@torch.inference_mode()
def speak(generator: Generator, ids: Tensor, frames: int) -> tuple[Tensor, list[float]]:
    """What `Peer.speak` does, by our own engine."""
    engine = generator.engine
    rows = torch.zeros(len(ids), generator.config.num_codebooks + 1, dtype=torch.int64)
    rows[:, -1] = ids
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[:, -1] = True
    context = engine.new_context()
    engine.prefill(context, Rows(rows, mask))
    codes, times = [], []
    for frame in engine.speak(context, GREEDY, torch.Generator(generator.device), frames, endless=True):
        codes.append(frame)
        times.append(time.perf_counter())
    return torch.stack(codes).cpu(), [after - before for before, after in itertools.pairwise(times)]


def text_ids(config: ModelConfig, count: int, seed: int = 7) -> Tensor:
    """Random text ids, int64 (count,), none of them special."""
    plain = min(config.text_vocab_size - 4, 128_000)
    return torch.randint(0, plain, (count,), generator=torch.Generator().manual_seed(seed))


def alternate(
    peer: Peer, ours: dict[str, Generator], positions: int, frames: int, rounds: int
) -> dict[str, list[list[float]]]:
    """Seconds of each frame of every round, by who spoke: one after the other in every round, after the same text."""
    found: dict[str, list[list[float]]] = {name: [] for name in ("transformers", *ours)}
    ids = text_ids(next(iter(ours.values())).config, positions)
    peer.speak(ids, 2)
    for generator in ours.values():
        speak(generator, ids, 2)
    for _ in range(rounds):
        found["transformers"].append(peer.speak(ids, frames + 1)[1])
        for name, generator in ours.items():
            found[name].append(speak(generator, ids, frames + 1)[1])
    return found


def _without_codec(config: ModelConfig) -> ModelConfig:
    """The same language model beside a codec of a few numbers, which nobody asks for sound."""
    k = config.num_codebooks
    small = MimiConfig("mimi", k, 32, max(k, 2), dim=32, filters=4, codebook_dim=16, layers=1, heads=4, mlp_dim=32)
    return replace(config, codec=small)


def _fill_buffers(theirs: Any, config: ModelConfig, device: torch.device) -> None:
    """What a checkpoint doesn't hold and the meta device didn't compute: rotary frequencies and codebook offsets."""
    for parent in list(theirs.modules()):
        for name, child in list(parent.named_children()):
            if "inv_freq" in child._buffers:
                setattr(parent, name, type(child)(child.config).to(device))
            if "audio_tokens_offsets" in child._buffers:
                child.audio_tokens_offsets = torch.arange(config.num_codebooks, device=device) * config.audio_vocab_size
