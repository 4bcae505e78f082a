"""Pipecat's OpenAIRealtimeLLMService in a pipeline: `pip install "pipecat-ai[openai,websocket]"`, then with the
server's address and a recording of a question, mono at 24 kHz."""

import asyncio
import sys
import wave

from pipecat.frames.frames import EndFrame, InputAudioRawFrame, TranscriptionFrame, TTSAudioRawFrame, TTSTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

PIECE = 960  # samples: 40 ms


class Ear(FrameProcessor):
    """Keeps what passes."""

    heard, said, asked = 0, "", ""

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            Ear.heard += len(frame.audio)
        elif isinstance(frame, TTSTextFrame):
            Ear.said += frame.text
        elif isinstance(frame, TranscriptionFrame):
            Ear.asked += frame.text
        await self.push_frame(frame, direction)


async def main() -> None:
    address = sys.argv[1].rstrip("/").replace("http", "ws", 1)
    with wave.open(sys.argv[2]) as file:
        sound = file.readframes(file.getnframes())
    turns = events.SemanticTurnDetection()
    heard = events.AudioInput(transcription=events.InputAudioTranscription(), turn_detection=turns)
    properties = events.SessionProperties(audio=events.AudioConfiguration(input=heard))
    settings = OpenAIRealtimeLLMService.Settings(
        model="smollm2-135m", system_instruction="Answer in one short sentence.", session_properties=properties
    )
    service = OpenAIRealtimeLLMService(api_key="any", base_url=f"{address}/v1/realtime", settings=settings)
    pair = LLMContextAggregatorPair(LLMContext([]))
    steps = [pair.user(), Ear(), service, Ear(), pair.assistant()]
    rates = PipelineParams(audio_in_sample_rate=24_000, audio_out_sample_rate=24_000)
    task = PipelineTask(Pipeline(steps), params=rates)
    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    await asyncio.sleep(2)
    sound += bytes(2 * 24_000 * 2)
    for at in range(0, len(sound), 2 * PIECE):
        await task.queue_frame(InputAudioRawFrame(sound[at : at + 2 * PIECE], 24_000, 1))
        await asyncio.sleep(0.04)
    before = -1
    while Ear.heard == 0 or Ear.heard > before:
        before = Ear.heard
        await asyncio.sleep(2)
    await task.queue_frame(EndFrame())
    await asyncio.wait_for(running, 30)
    assert Ear.heard > 24_000 and Ear.asked, (Ear.heard, Ear.asked)
    print("Pipecat talks;", Ear.heard / 48_000, "s of sound;", Ear.asked, "|", Ear.said)


asyncio.run(asyncio.wait_for(main(), 120))
