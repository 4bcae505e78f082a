"""Answers of `/v1` that leave while they are made: bytes of a file, or OpenAI's events."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from csm.conversation.events import Event, TurnChunk
from csm.errors import InputError
from csm.web.encoding import Encoder
from csm.web.v1.errors import broken, refused
from csm.web.v1.heard import Heard

logger = logging.getLogger(__name__)


async def in_bytes(events: AsyncIterator[Event], encoder: Encoder) -> AsyncIterator[bytes]:
    """The file as it grows."""
    async for event in events:
        if isinstance(event, TurnChunk):
            yield encoder.write(event.audio.numpy())
    yield encoder.finish()


async def in_events(
    events: AsyncIterator[Event],
    encoder: Encoder,
    streams: bool,
    heard: Heard,
    more: Callable[[], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """`speech.audio.delta` with base64 of the sound, `speech.audio.done` with what was used and `more`.

    Where the format does not stream, the whole file is in one event.
    """
    waves: list[np.ndarray] = []
    try:
        async for event in events:
            await asyncio.to_thread(heard.take, event)
            if isinstance(event, TurnChunk) and streams:
                yield _delta(encoder.write(event.audio.numpy()))
            elif isinstance(event, TurnChunk):
                waves.append(event.audio.numpy())
        yield _delta(encoder.finish() if streams else await asyncio.to_thread(encoder.whole, np.concatenate(waves)))
        done = {"type": "speech.audio.done", "usage": heard.usage} | await asyncio.to_thread(more)
        if heard.doubts:
            done["doubt"] = "; ".join(heard.doubts)
    except InputError as error:
        yield event_line(refused(error).body)
        return
    except Exception:
        logger.exception("A stream of speech broke off.")
        yield event_line(broken().body)
        return
    yield event_line(done)


def event_line(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def _delta(data: bytes) -> bytes:
    sound = base64.b64encode(data).decode()
    return event_line({"type": "speech.audio.delta", "audio": sound}) if data else b""
