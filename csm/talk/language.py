"""Any language model behind a chat API like OpenAI's: messages go out, words and calls of functions come back as they
are made, and leaving off ends the work at the other side."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol
from urllib.parse import urlsplit

from csm.config import Environment
from csm.errors import InputError

CONNECT_SECONDS, SILENT_SECONDS = 5.0, 45.0
LETTERS = 48_000  # of a chat that a model of unknown size is sent: 12 000 tokens or so
MOST_UNREAD = 1 << 20  # bytes without an end of a line
LOOPBACK = ("localhost", "127.0.0.1", "::1")

DOWN = "The language model at {} can't be reached: see that it runs, and that CSM_LLM_URL is its address."
SLOW = "The language model at {} has said nothing for {:.0f} seconds, so it was given up."
REFUSES = "The language model at {} refuses the key: set CSM_LLM_KEY to one that it takes."
UNKNOWN = "The language model at {} knows no model called “{}”: set CSM_LLM_MODEL to one of its names."
BUSY = "The language model at {} has too much to do: try again in a while."
FAILED = "The language model at {} answered with status {}."
GARBAGE = "The language model at {} sent something that is no answer: CSM_LLM_URL must be the address of a chat API."


@dataclass(frozen=True)
class Call:
    """A function that the language model wants called; `arguments` are JSON in a string."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Prompt:
    """What is asked of a language model."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = "auto"
    temperature: float | None = None
    most_tokens: int | None = None


class LanguageModel(Protocol):
    """Who finds the words. `letters` is how much of a talk it is sent; `shown` says what it is."""

    @property
    def name(self) -> str: ...

    @property
    def shown(self) -> str: ...

    @property
    def letters(self) -> int: ...

    def answer(self, prompt: Prompt) -> AsyncGenerator[str | Call, None]:
        """Words as they come, then calls. Raises `InputError`; closing the iterator ends the work."""
        ...

    async def ready(self, prompt: Prompt) -> None:
        """Read what will stand in front of the next turn, where that saves time then. Never raises `InputError`."""
        ...


@dataclass
class _Parts:
    """A call of a function while it comes in parts."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def add(self, part: Mapping[str, Any]) -> None:
        said = part.get("function") or {}
        self.id = part.get("id") or self.id
        self.name += said.get("name") or ""
        self.arguments += said.get("arguments") or ""


@dataclass(frozen=True)
class ChatModel:
    """The model `name` at `url`, the address that ends in `/v1`; `key` goes there and nowhere else."""

    url: str
    name: str
    key: str | None = field(default=None, repr=False)
    letters: int = LETTERS

    @property
    def shown(self) -> str:
        return f"{self.name} at {self.host}"

    @property
    def host(self) -> str:
        """The place without what may be secret in an address."""
        parts = urlsplit(self.url)
        return f"{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"

    async def answer(self, prompt: Prompt) -> AsyncGenerator[str | Call, None]:
        """As `LanguageModel` has it."""
        import httpx

        body: dict[str, Any] = {"model": self.name, "messages": list(prompt.messages), "stream": True}
        if prompt.tools:
            body |= {"tools": list(prompt.tools), "tool_choice": prompt.tool_choice}
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        if prompt.most_tokens is not None:
            body["max_tokens"] = prompt.most_tokens
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        direct = (urlsplit(self.url).hostname or "") in LOOPBACK
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            async with (
                httpx.AsyncClient(timeout=limits, trust_env=not direct, verify=self._certificates()) as client,
                client.stream("POST", address, json=body, headers=headers) as response,
            ):
                self._check(response.status_code)
                calls: dict[int, _Parts] = {}
                async for data in self._lines(response.aiter_bytes()):
                    for found in self._read(data, calls):
                        yield found
                for call in calls.values():
                    yield Call(call.id, call.name, call.arguments)
        except httpx.ReadTimeout as error:
            raise InputError(SLOW.format(self.host, SILENT_SECONDS), "language_model_slow") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputError(DOWN.format(self.host), "language_model_down") from error

    async def ready(self, prompt: Prompt) -> None:
        """Others read their prompts anew, or remember them on their own."""

    def _certificates(self) -> ssl.SSLContext | bool:
        """What the other side is known by; nothing where it shows none, because reading them takes longer than a turn
        can wait."""
        return False if urlsplit(self.url).scheme == "http" else _trusted()

    def _check(self, status: int) -> None:
        if status in (401, 403):
            raise InputError(REFUSES.format(self.host), "language_model_refuses")
        if status == 404:
            raise InputError(UNKNOWN.format(self.host, self.name), "language_model_unknown")
        if status in (429, 503):
            raise InputError(BUSY.format(self.host), "language_model_busy")
        if status != 200:
            raise InputError(FAILED.format(self.host, status), "language_model_failed")

    def _garbage(self) -> InputError:
        return InputError(GARBAGE.format(self.host), "language_model_garbage")

    async def _lines(self, parts: AsyncIterator[bytes]) -> AsyncIterator[str]:
        """The data of a stream of events, up to `[DONE]`. Raises `InputError` for what is none."""
        unread, any_data = b"", False
        async for part in parts:
            *lines, unread = (unread + part).split(b"\n")
            if len(unread) > MOST_UNREAD:
                raise self._garbage()
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                any_data, data = True, line[5:].decode("utf-8", "replace").strip()
                if data == "[DONE]":
                    return
                yield data
        if not any_data:
            raise self._garbage()

    def _read(self, data: str, calls: dict[int, _Parts]) -> list[str]:
        """The words of one event; parts of calls go into `calls`."""
        try:
            event = json.loads(data)
            if event.get("error"):
                raise InputError(FAILED.format(self.host, "“an error”"), "language_model_failed")
            choice = (event.get("choices") or [{}])[0]
            delta = choice.get("delta") or {}
            for part in delta.get("tool_calls") or []:
                calls.setdefault(int(part.get("index") or 0), _Parts()).add(part)
            content = delta.get("content")
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise self._garbage() from error
        return [content] if isinstance(content, str) and content else []


@cache
def _trusted() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


def configured(environment: Environment) -> list[ChatModel]:
    """The language models that the environment names, the usual one first; none where it names no address."""
    if environment.llm_url is None:
        return []
    return [ChatModel(environment.llm_url, name, environment.llm_key) for name in environment.llm_names or ("default",)]
