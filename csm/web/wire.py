"""A talk in the words of OpenAI's Realtime API (the GA events): what a client says read, what happens told as JSON."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.speech.voices import Voice
from csm.talk import events
from csm.talk.memory import Item, Piece
from csm.talk.options import INSTRUCTIONS, LONGEST_INSTRUCTIONS, MOST_TOOLS, TalkOptions, Turns
from csm.web.encoding import samples
from csm.web.openai import voice_for

FORMAT = {"type": "audio/pcm", "rate": SAMPLE_RATE}
EAGERNESS = dict(low=2.0, medium=0.8, high=0.5, auto=0.8)  # seconds of silence that end any turn
SERVER = Turns("server", silence=0.5)
LONGEST_MESSAGE = 2 << 20  # letters of one event: 30 s of sound
LONGEST_TEXT = 20_000  # letters of one item
SERVER_CODES = ("server_error", "queue_full", "not_installed", "no_language_model")

Sent = dict[str, Any]


# What a client says


def read_sound(data: Any) -> np.ndarray:
    """16-bit samples at 24 kHz in base64 -> float32 (num_samples,). Raises `InputError`."""
    if not isinstance(data, str):
        raise InputError("The field audio is missing: send 16-bit samples at 24 kHz in base64.", "invalid_audio")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("The audio is no base64 that can be read.", "invalid_audio") from error
    if len(raw) % 2:
        raise InputError("The audio has half a sample at its end: send 16-bit samples.", "invalid_audio")
    return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32_768


def read_options(given: Any, now: TalkOptions, voices: Mapping[str, Voice]) -> TalkOptions:
    """The options that `session.update` or `response.create` ask for, on top of those that hold `now`; what is unknown
    is left alone. Raises `InputError`."""
    session = _object(given, "session")
    audio = _object(session.get("audio"), "audio")
    heard, spoken = _object(audio.get("input"), "audio.input"), _object(audio.get("output"), "audio.output")
    for place, part in (("audio.input.format", heard), ("audio.output.format", spoken)):
        _check_format(place, part.get("format"))
    changes: dict[str, Any] = {}
    if (instructions := session.get("instructions")) is not None:
        changes["instructions"] = _text(instructions, "instructions", LONGEST_INSTRUCTIONS)
    if isinstance(model := session.get("model"), str):
        changes["model"] = model
    if (voice := spoken.get("voice", session.get("voice"))) is not None:
        changes["voice"] = read_voice(voice, voices)
    if (modalities := session.get("output_modalities")) is not None:
        if modalities not in (["audio"], ["text"], ["text", "audio"], ["audio", "text"]):
            raise InputError('output_modalities must be ["audio"] or ["text"].', "invalid_value")
        changes["spoken"] = "audio" in modalities
    if "turn_detection" in heard:
        changes["turns"] = read_turns(heard["turn_detection"])
    if (tools := session.get("tools")) is not None:
        changes["tools"] = _tools(tools)
    if (choice := session.get("tool_choice")) is not None:
        changes["tool_choice"] = _choice(choice)
    if (most := session.get("max_output_tokens")) is not None:
        if most != "inf" and (isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 4_096):
            raise InputError('max_output_tokens must be "inf" or a whole number from 1 to 4096.', "invalid_value")
        changes["most_tokens"] = None if most == "inf" else most
    if (temperature := session.get("temperature")) is not None:
        changes["temperature"] = _number(temperature, "temperature", 0.0, 2.0)
    return replace(now, **changes)


def read_voice(given: Any, voices: Mapping[str, Voice]) -> str:
    """The name of one of our voices, asked for by it or by one of OpenAI's. Raises `InputError`."""
    name = given.get("id") if isinstance(given, dict) else given
    voice = voice_for(name, dict(voices)) if isinstance(name, str) else None
    if voice is None:
        raise InputError(f"There is no voice “{str(name)[:80]}”; use one of {', '.join(voices)}.", "invalid_value")
    return next(shown for shown, one in voices.items() if one is voice)


def read_turns(given: Any) -> Turns | None:
    """`turn_detection`: None, `server_vad` or `semantic_vad`. Raises `InputError`."""
    if given is None:
        return None
    asked = _object(given, "turn_detection")
    kind = asked.get("type", "server_vad")
    if kind == "server_vad":
        turns = replace(
            SERVER,
            threshold=_number(asked.get("threshold"), "threshold", 0.0, 1.0, SERVER.threshold),
            silence=_number(asked.get("silence_duration_ms"), "silence_duration_ms", 100, 5_000, 500) / 1000,
            prefix=_number(asked.get("prefix_padding_ms"), "prefix_padding_ms", 0, 1_500, 300) / 1000,
        )
    elif kind == "semantic_vad":
        eagerness = asked.get("eagerness") or "auto"
        if eagerness not in EAGERNESS:
            raise InputError(f"The eagerness must be one of {', '.join(EAGERNESS)}.", "invalid_value")
        turns = Turns("semantic", silence=EAGERNESS[eagerness])
    else:
        raise InputError("turn_detection must be null, or have the type server_vad or semantic_vad.", "invalid_value")
    answers, interrupts = asked.get("create_response"), asked.get("interrupt_response")
    return replace(turns, answers=answers is not False, interrupts=interrupts is not False)


def read_item(given: Any) -> Item:
    """The item of `conversation.item.create`. Raises `InputError` for one that is of no kind that is known here."""
    asked = _object(given, "item")
    named = {"id": asked["id"]} if isinstance(asked.get("id"), str) and asked["id"] else {}
    kind = asked.get("type")
    if kind == "function_call_output":
        output = _text(asked.get("output"), "output", LONGEST_TEXT)
        return Item("tool", kind, call_id=str(asked.get("call_id") or ""), output=output, **named)
    if kind == "function_call":
        name, arguments = str(asked.get("name") or ""), _text(asked.get("arguments"), "arguments", LONGEST_TEXT)
        call = str(asked.get("call_id") or f"call_{secrets.token_hex(8)}")
        return Item("assistant", kind, call_id=call, name=name, arguments=arguments, **named)
    role = asked.get("role")
    if kind != "message" or role not in ("user", "assistant", "system"):
        told = "An item must be a message of user, assistant or system, a function_call or a function_call_output."
        raise InputError(told, "invalid_item")
    parts = asked.get("content")
    texts = []
    for part in parts if isinstance(parts, list) else []:
        part = _object(part, "content")
        if "audio" in part and not part.get("transcript"):
            raise InputError("Sound comes through input_audio_buffer.append: an item takes text.", "invalid_item")
        if isinstance(text := part.get("text", part.get("transcript")), str):
            texts.append(text)
    return Item(role, pieces=[Piece(_text("\n".join(texts), "text", LONGEST_TEXT))], **named)


def _object(given: Any, name: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"The field {name} must be an object.", "invalid_value")
    return given


def _text(given: Any, name: str, longest: int) -> str:
    if not isinstance(given, str):
        raise InputError(f"The field {name} must be a text.", "invalid_value")
    if len(given) > longest:
        raise InputError(f"The field {name} has {len(given):,} letters and at most {longest:,} fit.", "too_long")
    return given


def _number(given: Any, name: str, least: float, most: float, usual: float = 0.0) -> float:
    if given is None:
        return usual
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
        raise InputError(f"The field {name} must be a number from {least:g} to {most:g}.", "invalid_value")
    return float(given)


def _check_format(place: str, given: Any) -> None:
    if given is None or given == "pcm16":
        return
    asked = _object(given, place)
    if asked.get("type", "audio/pcm") != "audio/pcm" or asked.get("rate") not in (None, SAMPLE_RATE):
        raise InputError(f"The {place} must be audio/pcm at {SAMPLE_RATE} Hz.", "invalid_value")


def _tools(given: Any) -> tuple[dict[str, Any], ...]:
    """Functions in the chat API's form; tools of other kinds are left out, because nothing here can call them."""
    if not isinstance(given, list) or len(given) > MOST_TOOLS:
        raise InputError(f"The field tools must be a list of at most {MOST_TOOLS}.", "invalid_value")
    found = []
    for tool in given:
        tool = _object(tool, "tools")
        if tool.get("type") == "function":
            named = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
            found.append({"type": "function", "function": named})
    return tuple(found)


def _choice(given: Any) -> Any:
    if given in ("auto", "none", "required"):
        return given
    if isinstance(given, dict) and given.get("type") == "function":
        return {"type": "function", "function": {"name": str(given.get("name"))}}
    raise InputError("tool_choice must be auto, none, required or a function.", "invalid_value")


# What is told


def session_view(name: str, options: TalkOptions, models: Mapping[str, str]) -> Sent:
    """The session as it stands; under `csm` what there is to choose from: language models with what each is."""
    turns, shown = options.turns, None
    if turns is not None:
        both = {"create_response": turns.answers, "interrupt_response": turns.interrupts}
        shown = {"type": f"{turns.kind}_vad", **both}
        if turns.kind == "server":
            shown |= {
                "threshold": turns.threshold,
                "prefix_padding_ms": round(1000 * turns.prefix),
                "silence_duration_ms": round(1000 * turns.silence),
            }
        else:
            shown["eagerness"] = next((name for name, wait in EAGERNESS.items() if wait == turns.silence), "auto")
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": name,
        "model": options.model or next(iter(models), ""),
        "output_modalities": _modalities(options.spoken),
        "instructions": options.instructions,
        "audio": {
            "input": {
                "format": FORMAT,
                "transcription": {"model": "moonshine-tiny"},
                "noise_reduction": None,
                "turn_detection": shown,
            },
            "output": {"format": FORMAT, "voice": options.voice, "speed": 1.0},
        },
        "tools": [{"type": "function", **tool["function"]} for tool in options.tools],
        "tool_choice": options.tool_choice,
        "max_output_tokens": options.most_tokens or "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "include": None,
        "csm": {"models": dict(models), "instructions": INSTRUCTIONS},
    }


def error_view(sentence: str, code: str = "", asked: Any = None) -> Sent:
    """A refusal; `asked` is the client's own name of what was refused."""
    kind = "server_error" if code in SERVER_CODES or code.startswith("language_model") else "invalid_request_error"
    told = {"type": kind, "code": code or "invalid_value", "message": sentence, "param": None, "event_id": asked}
    return {"type": "error", "error": told}


def item_view(item: Item) -> Sent:
    """An item as it stands."""
    shown: Sent = {"id": item.id, "object": "realtime.item", "type": item.kind}
    shown["status"] = "completed" if item.done else "incomplete"
    if item.kind == "function_call":
        return shown | {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
    if item.kind == "function_call_output":
        return shown | {"call_id": item.call_id, "output": item.output}
    return shown | {"role": item.role, "content": [content_view(item)] if item.text else []}


def content_view(item: Item, text: str | None = None) -> Sent:
    """The one part of a message."""
    text = item.text if text is None else text
    if item.role == "assistant":
        return {"type": "output_audio", "transcript": text} if item.sound else {"type": "output_text", "text": text}
    return {"type": "input_audio", "transcript": text} if item.sound else {"type": "input_text", "text": text}


def _modalities(spoken: bool) -> list[str]:
    return ["audio"] if spoken else ["text"]


@dataclass
class _Told:
    """What has been told of the answer that is given."""

    written: str = ""
    opened: list[str] = field(default_factory=list)  # its items
    spoken: bool = True


class Teller:
    """Tells a talk's events as the API's."""

    def __init__(self) -> None:
        self._conversation = f"conv_{secrets.token_hex(12)}"
        self._told = _Told()
        self._answer = ""

    def tell(self, event: events.Event) -> Iterator[Sent]:
        """The API's events for one of the talk's, in order."""
        if isinstance(event, events.SpeechBegan):
            started = {"audio_start_ms": event.milliseconds, "item_id": event.item}
            yield {"type": "input_audio_buffer.speech_started", **started}
        elif isinstance(event, events.SpeechEnded):
            stopped = {"audio_end_ms": event.milliseconds, "item_id": event.item}
            yield {"type": "input_audio_buffer.speech_stopped", **stopped}
        elif isinstance(event, events.Dropped):
            yield {"type": "input_audio_buffer.cleared", "item_id": event.item}
        elif isinstance(event, events.Committed):
            committed = {"item_id": event.item, "previous_item_id": event.previous}
            yield {"type": "input_audio_buffer.committed", **committed}
        elif isinstance(event, events.ItemAdded):
            yield from self._added(event)
        elif isinstance(event, events.Transcribed):
            yield from _transcribed(event)
        elif isinstance(event, events.AnswerBegan):
            self._told, self._answer = _Told(spoken=event.spoken), event.answer
            yield {"type": "response.created", "response": self._response(event.answer, "in_progress", [])}
        elif isinstance(event, events.Words):
            self._told.written += event.text
            kind = "output_audio_transcript" if event.item.sound else "output_text"
            yield {"type": f"response.{kind}.delta", **self._part(event.item), "delta": event.text}
        elif isinstance(event, events.Sound):
            sound = base64.b64encode(samples(event.wave).tobytes()).decode()
            yield {"type": "response.output_audio.delta", **self._part(event.item), "delta": sound}
        elif isinstance(event, events.Called):
            yield from self._called(event)
        elif isinstance(event, events.AnswerEnded):
            yield from self._ended(event)
        elif isinstance(event, events.Truncated):
            where = {"item_id": event.item.id, "content_index": 0, "audio_end_ms": event.milliseconds}
            yield {"type": "conversation.item.truncated", **where, "csm": {"transcript": event.item.text}}
        elif isinstance(event, events.Deleted):
            yield {"type": "conversation.item.deleted", "item_id": event.item}
        elif isinstance(event, events.Held):
            yield {"type": "csm.waiting", "ahead": event.ahead}
        else:
            yield error_view(event.sentence, event.code)

    def _added(self, event: events.ItemAdded) -> Iterator[Sent]:
        item = event.item
        answers = item.role == "assistant" and item.kind == "message" and not item.done
        if not answers:
            for kind in ("added", "done"):
                yield {
                    "type": f"conversation.item.{kind}",
                    "previous_item_id": event.previous,
                    "item": item_view(item),
                }
            return
        begun = item_view(item) | {"status": "in_progress", "content": []}
        yield self._opened(item, begun)
        yield {"type": "conversation.item.added", "previous_item_id": event.previous, "item": begun}
        yield {"type": "response.content_part.added", **self._part(item), "part": _part_view(item, "")}

    def _opened(self, item: Item, shown: Sent) -> Sent:
        self._told.opened.append(item.id)
        at = len(self._told.opened) - 1
        return {"type": "response.output_item.added", "response_id": self._answer, "output_index": at, "item": shown}

    def _called(self, event: events.Called) -> Iterator[Sent]:
        item, call = event.item, event.call
        shown = item_view(item)
        yield self._opened(item, shown | {"status": "in_progress", "arguments": ""})
        where = self._part(item) | {"call_id": call.id}
        where.pop("content_index")
        yield {"type": "response.function_call_arguments.delta", **where, "delta": call.arguments}
        done = {"name": call.name, "arguments": call.arguments}
        yield {"type": "response.function_call_arguments.done", **where, **done}

    def _ended(self, event: events.AnswerEnded) -> Iterator[Sent]:
        written = self._told.written.strip()
        for item in event.items:
            shown = item_view(item)
            if item.kind == "message":
                where = self._part(item)
                shown["content"] = [content_view(item, written)]
                if item.sound:
                    yield {"type": "response.output_audio.done", **where}
                    yield {"type": "response.output_audio_transcript.done", **where, "transcript": written}
                else:
                    yield {"type": "response.output_text.done", **where, "text": written}
                yield {"type": "response.content_part.done", **where, "part": _part_view(item, written)}
            elif item.kind == "function_call":
                yield {"type": "conversation.item.added", "previous_item_id": None, "item": shown}
            at = self._told.opened.index(item.id) if item.id in self._told.opened else 0
            done = {"response_id": event.answer, "output_index": at, "item": shown}
            yield {"type": "response.output_item.done", **done}
            yield {"type": "conversation.item.done", "previous_item_id": None, "item": shown}
        output = [item_view(item) for item in event.items]
        response = self._response(event.answer, event.state, output)
        if event.state == "failed":
            told = error_view(event.sentence, event.code)
            yield told
            error = {name: told["error"][name] for name in ("type", "code", "message")}
            response["status_details"] = {"type": "failed", "error": error}
        elif event.state == "cancelled":
            reason = "turn_detected" if event.interrupted else "client_cancelled"
            response["status_details"] = {"type": "cancelled", "reason": reason}
        frames = event.cost.frames
        response["usage"] = {"total_tokens": frames, "input_tokens": 0, "output_tokens": frames}
        cost = event.cost
        response["csm"] = {"positions": cost.positions, "most_positions": cost.most, "steps": cost.steps}
        yield {"type": "response.done", "response": response}

    def _part(self, item: Item) -> Sent:
        opened = self._told.opened
        at = opened.index(item.id) if item.id in opened else 0
        return {"response_id": self._answer, "item_id": item.id, "output_index": at, "content_index": 0}

    def _response(self, name: str, status: str, output: list[Sent]) -> Sent:
        return {
            "object": "realtime.response",
            "id": name,
            "status": status,
            "status_details": None,
            "output": output,
            "conversation_id": self._conversation,
            "output_modalities": _modalities(self._told.spoken),
            "max_output_tokens": "inf",
            "usage": None,
            "metadata": None,
        }


def _part_view(item: Item, text: str) -> Sent:
    return {"type": "audio", "transcript": text} if item.sound else {"type": "text", "text": text}


def _transcribed(event: events.Transcribed) -> Iterator[Sent]:
    item, text = event.item, event.item.text
    where = {"item_id": item.id, "content_index": 0}
    kind = "conversation.item.input_audio_transcription"
    yield {"type": f"{kind}.delta", **where, "delta": text}
    usage = {"type": "duration", "seconds": round(event.seconds, 3)}
    yield {"type": f"{kind}.completed", **where, "transcript": text, "usage": usage}
