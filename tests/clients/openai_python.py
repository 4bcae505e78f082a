"""OpenAI's client for Python, version 2 or 3: `python openai_python.py http://127.0.0.1:7860`."""

import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1].rstrip('/')}/v1", api_key="any", max_retries=0)
asked = {"model": "gpt-4o-mini-tts", "voice": "nova", "input": "Good morning. The rain has stopped."}

assert client.models.retrieve("tts-1").id == "tts-1" and "tts-1-hd" in [model.id for model in client.models.list()]
assert len(client.audio.speech.create(**asked, instructions="Be calm.", speed=1.25).content) > 5_000
with client.audio.speech.with_streaming_response.create(**asked, response_format="pcm") as answer:
    pcm = b"".join(answer.iter_bytes())
assert len(pcm) > 48_000
with client.audio.speech.with_streaming_response.create(**asked, response_format="pcm", stream_format="sse") as answer:
    lines = [line for line in answer.iter_lines() if line]
assert len(lines) > 2 and "speech.audio.done" in lines[-1]
dated = client.audio.speech.with_raw_response.create(**asked | {"model": "gpt-4o-mini-tts-2025-12-15"})
assert "spoke" in dated.headers["warning"]
for changed, field in (({"voice": "nobody"}, "voice"), ({"speed": 9}, "speed"), ({"model": "banana"}, "model")):
    try:
        client.audio.speech.create(**asked | changed)
    except (openai.BadRequestError, openai.NotFoundError) as error:
        assert error.param == field and error.type == "invalid_request_error"
    else:
        raise AssertionError(f"{changed} was taken.")
print("openai", openai.__version__, "speaks;", len(pcm) / 48_000, "s of sound")
