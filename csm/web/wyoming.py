"""A bridge for Home Assistant: speaks Wyoming on one side and asks a running server's `/v1` on the other.

Each connection is somebody's; text that an assistant is still writing is passed on as it comes, so the first clause is
heard before the last is written.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import Any

import httpx
import websockets
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.server import AsyncEventHandler, AsyncServer
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped, SynthesizeVoice

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.version import __version__

FORMAT = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}
HANG_UP_SECONDS = 1.0  # how long the last word of a server that hangs up may take
UNHEARD = "The speech server at {} can't be reached or said no: {}"
logger = logging.getLogger(__name__)


class Bridge(AsyncEventHandler):
    """One connection. `url` is the server's `/v1`, `voice` that of those who name none."""

    def __init__(self, *streams: Any, url: str, voice: str, key: str | None = None) -> None:
        super().__init__(*streams)
        self._url, self._voice = url.rstrip("/"), voice
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._text: Any = None  # the socket that takes the text which streams in
        self._sound: asyncio.Task[None] | None = None

    async def handle_event(self, event: Event) -> bool:
        """Answer one event; whatever goes wrong is told to the client."""
        try:
            if Describe.is_type(event.type):
                await self.write_event((await self._info()).event())
            elif Synthesize.is_type(event.type) and self._text is None:
                asked = Synthesize.from_event(event)
                await self._begin(asked.voice)
                await self._send({"type": "input.text", "text": asked.text})
                await self._end()
            elif SynthesizeStart.is_type(event.type):
                await self._begin(SynthesizeStart.from_event(event).voice)
            elif SynthesizeChunk.is_type(event.type) and self._text is not None:
                await self._send({"type": "input.text", "text": SynthesizeChunk.from_event(event).text})
            elif SynthesizeStop.is_type(event.type) and self._text is not None:
                await self._end()
                await self.write_event(SynthesizeStopped().event())
        except (OSError, ValueError, httpx.HTTPError, websockets.WebSocketException) as error:
            told = UNHEARD.format(self._url, await self._reason(error))
            logger.warning(told)
            await self.disconnect()
            await self.write_event(Error(told, "unheard").event())
        return True

    async def disconnect(self) -> None:
        """End what is spoken for a client that has gone."""
        if self._sound is not None:
            self._sound.cancel()
        if self._text is not None:
            await self._text.close()
        self._text = self._sound = None

    async def _begin(self, voice: SynthesizeVoice | None) -> None:
        await self.disconnect()
        address = f"ws{self._url.removeprefix('http')}/audio/speech/stream"
        self._text = await websockets.connect(address, additional_headers=self._headers, proxy=None)
        await self._send({"type": "session.config", "voice": (voice and voice.name) or self._voice})
        self._sound = asyncio.create_task(self._pass_on(self._text))

    async def _send(self, message: dict[str, Any]) -> None:
        await self._text.send(json.dumps(message))

    async def _end(self) -> None:
        """The text is whole: pass on the rest of its sound."""
        await self._send({"type": "input.done"})
        assert self._sound is not None
        await self._sound
        await self.disconnect()

    async def _pass_on(self, socket: Any) -> None:
        await self.write_event(AudioStart(**FORMAT).event())
        async for message in socket:
            if isinstance(message, bytes):
                await self.write_event(AudioChunk(audio=message, **FORMAT).event())
            elif (told := json.loads(message))["type"] == "error":
                raise ValueError(told["error"]["message"])
        await self.write_event(AudioStop().event())

    async def _reason(self, error: Exception) -> BaseException:
        """What the server said, where it said why before it hung up."""
        if self._sound is None:
            return error
        await asyncio.wait({self._sound}, timeout=HANG_UP_SECONDS)
        ended = self._sound.done() and not self._sound.cancelled()
        return (self._sound.exception() if ended else None) or error

    async def _info(self) -> Info:
        """Who speaks, and the voices on offer."""
        async with httpx.AsyncClient(headers=self._headers, trust_env=False) as client:
            answer = (await client.get(f"{self._url}/audio/voices")).raise_for_status().json()
        by = Attribution("csm-conversations", self._url)
        more: dict[str, Any] = {"attribution": by, "installed": True, "version": __version__}
        voices = [
            TtsVoice(name=voice["id"], description=voice["name"], languages=["en"], **more)
            for voice in answer["voices"]
        ]
        about = "Conversational speech"
        program = TtsProgram(name="csm", description=about, voices=voices, supports_synthesize_streaming=True, **more)
        return Info(tts=[program])


async def bridge(uri: str, url: str, voice: str, key: str | None = None) -> None:
    """Serve at `uri` (`tcp://127.0.0.1:10200`) until stopped. Raises `InputError` where that can't be."""
    try:
        server = AsyncServer.from_uri(uri)
        await server.run(partial(Bridge, url=url, voice=voice, key=key))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{uri} can't be served ({error}): give an address such as tcp://127.0.0.1:10200.") from error
