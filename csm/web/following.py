"""A job's updates for a coroutine: made in a thread, ended when the one who asked has gone."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from starlette.requests import Request

from csm.web.gpu import Stoppable

LOOK_SECONDS = 0.2  # how often to see whether anybody still listens
_END = object()


async def followed(
    request: Request, updates: Iterator[Any], job: Stoppable, news: Callable[[], Any] = lambda: None
) -> AsyncGenerator[Any, None]:
    """What `updates` yields, and between that whatever is new of `news`. When the client goes, or the caller closes
    this, the job is stopped within a frame, leaves the queue, and its folder is deleted."""
    context = contextvars.copy_context()
    # ZeroGPU finds out from Gradio's context whose quota a job is for.
    context.run(LocalContext.request.set, gr.Request(request))
    pool = ThreadPoolExecutor(1, thread_name_prefix="speech")

    def advance() -> Any:
        return context.run(lambda: next(updates, _END))

    told = None
    try:
        while True:
            step = asyncio.wrap_future(pool.submit(advance))
            made = False
            while not made:
                made = bool((await asyncio.wait({step}, timeout=LOOK_SECONDS))[0])
                if await request.is_disconnected():
                    job.stop_file.touch()
                if not made and (said := news()) not in (None, told):
                    told = said
                    yield said
            update = step.result()
            if update is _END or job.stop_file.exists():
                return
            yield update
    finally:
        job.stop_file.touch()
        pool.submit(_cleared, updates, job)  # after the step in progress: the pool has one thread
        pool.shutdown(wait=False)


def _cleared(updates: Iterator[Any], job: Stoppable) -> None:
    if (close := getattr(updates, "close", None)) is not None:
        close()
    shutil.rmtree(job.folder, ignore_errors=True)
