"""A model and what can be done with it and a context: prefill, step, speak, copy, close.

Between the generator, which brings rows of ids, and the network, which remembers nothing. The engine holds weights
and lineups that are lent for the length of a turn, so any number of contexts can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.engine.context import Context
from csm.engine.frames import Rows, audio_rows
from csm.engine.in_place import next_frames
from csm.engine.lineup import Stream
from csm.engine.lineups import Lineups
from csm.engine.threads import StepThreads
from csm.model import CSM, KVCache
from csm.settings import Settings


@dataclass(frozen=True)
class Together:
    """Streams that speak side by side: `step` waits for the next frame, `end` stops those that are not done."""

    streams: Sequence[Stream]
    step: Callable[[], object]
    end: Callable[[], None]


class Engine:
    """`lineups` are those of `model`, shared by whoever steps it. `weights` is what fused kernels read on CUDA: the
    model's own, or rounded to "int8" or "float8"."""

    def __init__(self, model: CSM, weights: str = "bfloat16", lineups: Lineups | None = None) -> None:
        self.model = model
        self.config = model.config
        self.lineups = lineups or Lineups(model, weights)
        self.threads = StepThreads(self.config, self.device, model.in_graphs)
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
        context.slot_id = int(rows.ids[-1, -1])

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
            stream = lineup.join(Stream(context.itself, sampling, generator, longest, endless=endless))
            while not stream.done:
                yield from lineup.step().values()
            if stream.error is not None:
                raise stream.error

    def step(self, context: Context, sampling: Settings, generator: torch.Generator) -> Tensor:
        """Sample the next frame in plain torch, int64 (K,), and feed it back. All zeros is the end of the turn."""
        with self.threads.few():
            return next_frames(self.model, [context], [sampling], [generator])[0]

    @contextmanager
    def speak_side_by_side(
        self, contexts: Sequence[Context], sampling: Settings, generators: Sequence[torch.Generator], longest: int
    ) -> Iterator[Together]:
        """Speak a turn from each of `contexts`, all in one batch; the block steps them. Those that are not done at its
        end are stopped."""
        with self.lineups.lend(len(contexts)) as lineup:
            streams = [
                lineup.join(Stream(context.itself, sampling, generator, longest))
                for context, generator in zip(contexts, generators, strict=True)
            ]
            yield Together(streams, lineup.step, lineup.clear)

    @torch.inference_mode()
    def adopt(self, context: Context, spoken: Context, frames: int) -> None:
        """Let `context` go on behind the next `frames` frames of `spoken`, which was a copy of it before.

        The state behind them is not known: read on before anybody speaks."""
        begin, end = context.length, context.length + frames
        pairs = (context.cache.keys, spoken.cache.keys), (context.cache.values, spoken.cache.values)
        for own, theirs in pairs:
            own[:, :, :, begin:end] = theirs[:, :, :, begin:end]
        context.cache.length, context.state = end, None

    @torch.inference_mode()
    def close(self, context: Context) -> None:
        """End a turn that did not end itself: feed the zero frame."""
        zeros = torch.zeros(1, self.config.num_codebooks, dtype=torch.int64, device=self.device)
        self._read(context, audio_rows(zeros, context.slot_id if self.config.slots_in_frames else None))

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
        self.threads.regain()
        ids, mask = rows.ids.to(self.device), rows.mask.to(self.device)
        hidden = self.model.backbone(self.model.embed_rows(ids[None], mask[None]), context.cache)
        context.state = hidden[:, -1]
