"""Pipecat's OpenAITTSService in a pipeline: `pip install "pipecat-ai[openai]"`, then with the server's address."""

import asyncio
import sys

from pipecat.frames.frames import EndFrame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.tts import OpenAITTSService


class Ear(FrameProcessor):
    """Counts the bytes of sound that pass."""

    heard = 0

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            Ear.heard += len(frame.audio)
        await self.push_frame(frame, direction)


async def main() -> None:
    address = f"{sys.argv[1].rstrip('/')}/v1"
    settings = OpenAITTSService.Settings(voice="nova", speed=1.25, instructions="Be calm.")
    service = OpenAITTSService(api_key="any", base_url=address, settings=settings)
    task = PipelineTask(Pipeline([service, Ear()]), params=PipelineParams(audio_out_sample_rate=24_000))
    await task.queue_frames([TTSSpeakFrame("Good morning. The rain has stopped."), EndFrame()])
    await PipelineRunner(handle_sigint=False).run(task)
    assert Ear.heard > 48_000
    print("Pipecat speaks;", Ear.heard / 48_000, "s of sound")


asyncio.run(main())
