"""A job's updates for a coroutine: made at the model's pace, ended when the one who asked has gone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import gradio as gr
from gradio.context import LocalContext
from starlette.requests import Request

from csm.conversation.ahead import Ahead
from csm.conversation.studio import LEFT, Job
from csm.errors import InputError
from csm.limits import SILENT_SECONDS

LOOK_SECONDS = 0.05  # how often to see whether anybody still listens
T = TypeVar("T")


async def followed(request: Request, updates: Iterator[Any], job: Job) -> AsyncGenerator[Any, None]:
    """What `updates` yields, in a thread of the job's own, which never waits for whoever follows. When the client goes,
    takes nothing for `SILENT_SECONDS`, or the caller closes this, the job is stopped within a frame, leaves the queue,
    and its folder is deleted."""
    context = contextvars.copy_context()
    # ZeroGPU finds out from Gradio's context whose quota a job is for.
    context.run(LocalContext.request.set, gr.Request(request))
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    ahead = Ahead(updates, job, context.run, lambda: _told(loop, news), SILENT_SECONDS)
    try:
        while True:
            if await request.is_disconnected():
                return
            news.clear()
            try:
                there, update = ahead.take()
            except StopIteration:
                return
            if there:
                yield update
                continue
            try:
                await asyncio.wait_for(news.wait(), LOOK_SECONDS)
            except asyncio.TimeoutError:
                pass
    finally:
        ahead.leave()


async def attended(request: Request, work: Callable[[Callable[[], bool]], T]) -> T:
    """What `work` returns, done in a thread; it is given a function that says whether the client has gone. Raises
    `InputError` when that is so."""
    gone = False
    step = asyncio.ensure_future(asyncio.to_thread(work, lambda: gone))
    try:
        while not (await asyncio.wait({step}, timeout=LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                raise InputError(LEFT, "given_up")
        return step.result()
    finally:
        gone = True
        if not step.done():
            step.add_done_callback(lambda step: step.cancelled() or step.exception())  # nobody asks any more


def _told(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(news.set)
    except RuntimeError:  # the server has ended
        pass
