"""What speech-to-speech of Hugging Face has behind `--tts openai`: `pip install speech-to-speech`, then the address."""

import sys
from queue import Queue
from threading import Event

from speech_to_speech.pipeline.messages import TTSInput
from speech_to_speech.TTS.openai_compatible_handler import OpenAICompatibleTTSHandler

asked = {"base_url": f"{sys.argv[1].rstrip('/')}/v1", "api_key": "any", "model": "tts-1", "voice": "nova"}
asked |= {"language": "en", "instructions": "Be calm.", "stream": True}
handler = OpenAICompatibleTTSHandler(Event(), Queue(), Queue(), setup_args=(Event(),), setup_kwargs=asked)
sounds = list(handler.process(TTSInput(text="Good morning. The rain has stopped.")))
samples = sum(len(sound.audio if hasattr(sound, "audio") else sound) for sound in sounds)
assert samples > 16_000, sounds[:2]
print("speech-to-speech speaks;", samples / 16_000, "s of sound")
