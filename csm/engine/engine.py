"""A model and what can be done with it and a context: prefill, step, speak, copy, close.

Between the generator, which brings rows of ids, and the network, which remembers nothing. The engine holds weights
and lineups that are lent for the length of a turn, so any number of contexts can use it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from csm.engine.context import Context
from csm.engine.lineup import Stream
from csm.engine.lineups import Lineups
from csm.frames import Rows, audio_rows
from csm.model import CSM, KVCache, frame_noise
from csm.settings import Settings


class Engine:
    """`lineups` are those of `model`, shared by whoever steps it. `weights` is what fused kernels read on CUDA: the
    model's own, or rounded to "int8" or "float8"."""

    def __init__(self, model: CSM, weights: str = "bfloat16", lineups: Lineups | None = None) -> None:
        self.model = model
        self.config = model.config
        self.lineups = lineups or Lineups(model, weights)
        self._beside: torch.cuda.Stream | None = None

    @property
    def device(self) -> torch.device:
        return self.model.projection.weight.device

    def new_context(self) -> Context:
        like = self.model.projection.weight
        return Context(KVCache(self.config.backbone, self.config.max_positions, 1, like))

    def warm_up(self) -> None:
        """Do now what a first turn would have to wait for beside its own work: on CUDA, kernels and the graphs of every
        span."""
        if self.device.type == "cuda":
            with self.lineups.lend(1) as lineup:
                lineup.stage.warm_up()

    @torch.inference_mode()
    def prefill(self, context: Context, rows: Rows) -> None:
        """Read rows into the context. Raises `IndexError` when they don't fit."""
        self._read(context, rows)
        context.prefilled += len(rows)

    def speak(
        self,
        context: Context,
        sampling: Settings,
        generator: torch.Generator,
        longest: int,
        endless: bool = False,
    ) -> Generator[Tensor, None, None]:
        """The frames of a turn, int64 (K,), at most `longest` and without the zero frame that ended it; an `endless`
        one goes on behind it.

        The context has those that were given, and the zero frame. On CUDA the frames are on the host, and the next
        one is under way when one is given.
        """
        if self.device.type == "cuda":
            yield from self.speak_on_stage(context, sampling, generator, longest, endless)
            return
        for _ in range(longest):
            frame = self.step(context, sampling, generator)
            if not endless and not frame.any():
                return
            yield frame

    def speak_on_stage(
        self,
        context: Context,
        sampling: Settings,
        generator: torch.Generator,
        longest: int,
        endless: bool = False,
    ) -> Generator[Tensor, None, None]:
        """What `speak` does, in a slot that is lent for the turn; nothing is allocated or recorded the second time."""
        with self.lineups.lend(1) as lineup:
            stream = lineup.join(Stream(lambda: context, sampling, generator, longest, endless=endless))
            while not stream.done:
                yield from lineup.step().values()
            if stream.error is not None:
                raise stream.error

    @torch.inference_mode()
    def step(self, context: Context, sampling: Settings, generator: torch.Generator) -> Tensor:
        """Sample the next frame in plain torch, int64 (K,), and feed it back. All zeros is the end of the turn."""
        noise = None
        if not sampling.greedy:
            noise = frame_noise([generator], self.config.num_codebooks, self.config.audio_vocab_size, self.device)
        codes = self.model.sample_frame(context.speaking_state(), sampling, noise)
        self._read(context, audio_rows(codes))
        return codes[0]

    @torch.inference_mode()
    def copy(self, context: Context, room: int) -> Context:
        """A context of its own that is where `context` is, with `room` more positions."""
        state, past, length = context.speaking_state(), context.cache, context.length
        made = Context(KVCache(self.config.backbone, length + room, 1, state))
        for own, theirs in ((made.cache.keys, past.keys), (made.cache.values, past.values)):
            own[:, :, :, :length] = theirs[:, :, :, :length]
        made.cache.length, made.state = length, state
        return made

    @torch.inference_mode()
    def close(self, context: Context) -> None:
        """End a turn that did not end itself: feed the zero frame."""
        zeros = torch.zeros(1, self.config.num_codebooks, dtype=torch.int64, device=self.device)
        self._read(context, audio_rows(zeros))

    def decoding(self) -> AbstractContextManager[object]:
        """Within it frames are decoded to sound. On CUDA that is a stream of its own, beside the next frame's.

        It waits for nothing: frames that were given are finished. What leaves it must come to the host inside it.
        """
        if self.device.type != "cuda":
            return nullcontext()
        if self._beside is None:
            self._beside = torch.cuda.Stream(self.device)
            self._beside.wait_stream(torch.cuda.current_stream(self.device))  # once, for the codec's weights
        return torch.cuda.stream(self._beside)

    def _read(self, context: Context, rows: Rows) -> None:
        ids, mask = rows.ids.to(self.device), rows.mask.to(self.device)
        hidden = self.model.backbone(self.model.embed_rows(ids[None], mask[None]), context.cache)
        context.state = hidden[:, -1]
