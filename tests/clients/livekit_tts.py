"""LiveKit's plugin for OpenAI: `pip install livekit-plugins-openai`, then with the server's address."""

import asyncio
import sys

import aiohttp
from livekit.agents import utils
from livekit.plugins import openai


async def main() -> None:
    async with aiohttp.ClientSession() as session:
        utils.http_context._ContextVar.set(lambda: session)
        tts = openai.TTS(base_url=f"{sys.argv[1].rstrip('/')}/v1", api_key="any", voice="nova", instructions="Be calm.")
        samples = 0
        async with tts.synthesize("Good morning. The rain has stopped.") as stream:
            async for event in stream:
                samples += event.frame.samples_per_channel
        await tts.aclose()
    assert samples > 24_000
    print("LiveKit speaks;", samples / 24_000, "s of sound")


asyncio.run(main())
