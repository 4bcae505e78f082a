"""A job's updates for a coroutine: made in a thread, ended when the one who asked has gone."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from starlette.requests import Request

from csm.conversation.studio import Job

LOOK_SECONDS = 0.2  # how often to see whether anybody still listens
_END = object()


async def followed(request: Request, updates: Iterator[Any], job: Job) -> AsyncGenerator[Any, None]:
    """What `updates` yields, in a thread of the job's own. When the client goes, or the caller closes this, the job is
    stopped within a frame, leaves the queue, and its folder is deleted."""
    context = contextvars.copy_context()
    # ZeroGPU finds out from Gradio's context whose quota a job is for.
    context.run(LocalContext.request.set, gr.Request(request))
    pool = ThreadPoolExecutor(1, thread_name_prefix="speech")

    def advance() -> Any:
        return context.run(lambda: next(updates, _END))

    gone = False
    try:
        while True:
            step = asyncio.wrap_future(pool.submit(advance))
            while not (await asyncio.wait({step}, timeout=LOOK_SECONDS))[0]:
                if not gone and (gone := await request.is_disconnected()):
                    job.stop()
            if step.result() is _END or gone or await request.is_disconnected():
                return
            yield step.result()
    finally:
        job.stop()
        pool.submit(_cleared, updates, job)  # after the step in progress: the pool has one thread
        pool.shutdown(wait=False)


def _cleared(updates: Iterator[Any], job: Job) -> None:
    if (close := getattr(updates, "close", None)) is not None:
        close()
    if job.folder is not None:
        shutil.rmtree(job.folder, ignore_errors=True)
