"""A model and what can be done with it and a context: prefill, step, speak, fork, close. The owner of stages.

Between the generator, which brings rows of ids, and the network, which remembers nothing. The engine holds weights
and buffers that are lent for the length of a turn, so any number of contexts can use it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from csm.engine.context import Context
from csm.engine.graph import GraphedStep, Recorder
from csm.engine.lineup import Lineup, Stream
from csm.engine.stage import Stage
from csm.engine.step import EagerStep, FrameStep, KernelStep
from csm.errors import InputError
from csm.frames import Rows, audio_rows
from csm.model import CSM, KVCache, Sampling, frame_noise


class Engine:
    """`weights` is what fused kernels read on CUDA: the model's own, or rounded to "int8" or "float8"."""

    def __init__(self, model: CSM, weights: str = "bfloat16") -> None:
        self.model = model
        self.weights = weights
        self.config = model.config
        self._idle: list[Lineup] = []  # for one stream each, between turns; graphs and all
        self._recorder: Recorder | None = None
        self._beside: torch.cuda.Stream | None = None

    @property
    def device(self) -> torch.device:
        return self.model.projection.weight.device

    def new_context(self) -> Context:
        like = self.model.projection.weight
        return Context(KVCache(self.config.backbone, self.config.max_positions, 1, like))

    def new_lineup(self, slots: int, ahead: int | None = None, step: FrameStep | None = None) -> Lineup:
        """Room for `slots` streams side by side. On CUDA their frames are graphs, launched one `ahead`.

        `step` is what makes frames for `slots` slots, if it isn't to be the fastest there is."""
        cuda = self.device.type == "cuda"
        if step is None:
            step = self._frame_step(slots)
        if cuda and not isinstance(step, GraphedStep):
            self._recorder = self._recorder or Recorder(self.device)
            step = GraphedStep(step, self._recorder)
        return Lineup(Stage(self.model, slots, step), (1 if cuda else 0) if ahead is None else ahead)

    def warm_up(self) -> None:
        """Do now what a first turn would have to wait for: on CUDA, record the graphs of every span."""
        if self.device.type == "cuda":
            lineup = self._take_lineup()
            lineup.stage.warm_up()
            self._idle.append(lineup)

    @torch.inference_mode()
    def prefill(self, context: Context, rows: Rows) -> None:
        """Read rows into the context. Raises `IndexError` when they don't fit."""
        self._read(context, rows)
        context.prefilled += len(rows)

    def speak(
        self, context: Context, sampling: Sampling, generator: torch.Generator, longest: int
    ) -> Generator[Tensor, None, None]:
        """The frames of a turn, int64 (K,), at most `longest` and without the zero frame that ended it.

        The context has those that were given, and the zero frame. On CUDA the frames are on the host, and the next
        one is under way when one is given.
        """
        if self.device.type == "cuda":
            yield from self.speak_on_stage(context, sampling, generator, longest)
            return
        for _ in range(longest):
            frame = self.step(context, sampling, generator)
            if not frame.any():
                return
            yield frame

    def speak_on_stage(
        self, context: Context, sampling: Sampling, generator: torch.Generator, longest: int
    ) -> Generator[Tensor, None, None]:
        """What `speak` does, in a slot that is lent for the turn; nothing is allocated or recorded the second time."""
        lineup = self._take_lineup()
        stream = lineup.join(Stream(lambda: context, sampling, generator, longest))
        try:
            while not stream.done:
                yield from lineup.step().values()
            if stream.error is not None:
                raise stream.error
        finally:
            lineup.leave(stream)
            self._idle.append(lineup)

    @torch.inference_mode()
    def step(self, context: Context, sampling: Sampling, generator: torch.Generator) -> Tensor:
        """Sample the next frame, int64 (K,), and feed it back. All zeros is the end of the turn."""
        noise = self._noise([generator], sampling)
        codes = self.model.sample_frame(context.speaking_state(), sampling, noise)
        self._read(context, audio_rows(codes))
        return codes[0]

    @torch.inference_mode()
    def fork(self, context: Context, copies: int, room: int) -> Context:
        """Contexts side by side, copies of `context` with `room` more positions. Several: for `step_each` only."""
        state, past, length = context.speaking_state(), context.cache, context.length
        fork = Context(KVCache(self.config.backbone, length + room, copies, state))
        for own, theirs in ((fork.cache.keys, past.keys), (fork.cache.values, past.values)):
            own[:, :, :, :length] = theirs[:, :, :, :length]
        fork.cache.length, fork.state = length, state.expand(copies, -1)
        return fork

    @torch.inference_mode()
    def step_each(self, fork: Context, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
        """Sample the next frame of every copy with its own noise, int64 (copies, K), and feed them back."""
        codes = self.model.sample_frame(fork.speaking_state(), sampling, self._noise(generators, sampling))
        rows = audio_rows(codes)
        self._read(fork, Rows(rows.ids[:, None], rows.mask[:, None]))
        return codes

    @torch.inference_mode()
    def adopt(self, context: Context, fork: Context, copy: int, frames: int) -> None:
        """Let `context` go on as copy number `copy` did for its first `frames` frames, without reading them again.

        The zero frame that ends the turn is fed here, and the state is that behind it.
        """
        begin, end = context.length, context.length + frames
        for own, theirs in ((context.cache.keys, fork.cache.keys), (context.cache.values, fork.cache.values)):
            own[:, 0, :, begin:end] = theirs[:, copy, :, begin:end]
        context.cache.length = end
        self.close(context)

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

    def _take_lineup(self) -> Lineup:
        try:
            return self._idle.pop()
        except IndexError:
            return self.new_lineup(1)

    def _frame_step(self, slots: int) -> FrameStep:
        """The fastest there is for this device: fused kernels if they run, else plain torch. Raises `InputError` for
        unknown weights."""
        if self.device.type == "cuda":
            try:
                return self._kernels(slots)
            except ImportError:  # no triton here
                pass
            except InputError:
                raise
            except Exception as error:  # a compiler or a device that they weren't written for
                warnings.warn(f"The fused kernels can't be used ({error}); plain torch steps instead.", stacklevel=4)
        return EagerStep(self.model, slots, self.config.max_positions)

    def _kernels(self, slots: int) -> FrameStep:
        made = importlib.import_module("csm.kernels.frame").FrameKernels
        step = KernelStep(made(self.model, slots, self.config.max_positions, self.weights))
        Stage(self.model, slots, step).warm_up(positions=1)  # so that what can't run is known now
        return step

    def _noise(self, generators: Sequence[torch.Generator], sampling: Sampling) -> Tensor | None:
        if sampling.greedy:
            return None
        return frame_noise(generators, self.config.num_codebooks, self.config.audio_vocab_size, self.device)

    def _read(self, context: Context, rows: Rows) -> None:
        """Rows (S, K+1) into a context of one, or (B, S, K+1) into a fork."""
        ids, mask = rows.ids.to(self.device), rows.mask.to(self.device)
        if ids.dim() == 2:
            ids, mask = ids[None], mask[None]
        hidden = self.model.backbone(self.model.embed_rows(ids, mask), context.cache)
        context.state = hidden[:, -1]
