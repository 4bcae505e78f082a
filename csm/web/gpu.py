"""Where the accelerator is asked for: the only use of `spaces.GPU`, between the web and what speaks.

On ZeroGPU the decorated function runs in a forked process: the model has to be in its closure, and what goes in and
comes out is pickled. Plain bytes outlive the process that sent them, which tensors may not, and refused input is data
like all else. Anywhere else work is done where it is asked for, in the thread of whoever follows it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import spaces
from spaces.config import Config

from csm.conversation.studio import Work
from csm.errors import InputError


def accelerator(work: Work, seconds: Callable[..., int]) -> Work:
    """`work` where the accelerator is, leased for as many `seconds` as its inputs need."""
    if not Config.zero_gpu:
        return work
    away = spaces.GPU(duration=seconds)(as_bytes(work))
    return lambda *inputs: from_bytes(away(*inputs))


def on_zerogpu() -> bool:
    """Whether this process has no accelerator but by asking for it."""
    return Config.zero_gpu


def as_bytes(work: Work) -> Callable[..., Iterator[bytes]]:
    """`work` whose results, a refusal among them, come as pickles."""

    def away(*inputs: Any) -> Iterator[bytes]:
        try:
            for result in work(*inputs):
                yield pickle.dumps(result)
        except InputError as error:
            yield pickle.dumps(error)

    return away


def from_bytes(results: Iterator[bytes]) -> Iterator[Any]:
    """What `as_bytes` was given. Raises the refusal among it."""
    for data in results:
        result = pickle.loads(data)
        if isinstance(result, InputError):
            raise result
        yield result
