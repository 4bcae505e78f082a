"""What `/openapi.json` says: every route of `/v1` with the models of its requests and replies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from csm.version import __version__
from csm.web.encoding import FORMATS
from csm.web.v1 import forms

PAGE = Path(__file__).parent / "page.html"
EVENTS = "text/event-stream"
SOUND = sorted({form.media_type for form in FORMATS.values()})


@dataclass(frozen=True)
class _Door:
    """One operation. `takes` and `gives` are models; `media` are what else it may answer with."""

    method: str
    path: str
    does: str
    gives: type[BaseModel] | None = None
    takes: type[BaseModel] | None = None
    media: tuple[str, ...] = ()
    refuses: tuple[int, ...] = ()
    example: dict[str, Any] | None = None


_SPOKEN = (400, 404, 413, 503)
DOORS = (
    _Door(
        "post", "/v1/audio/speech", "Speak a text.", None, forms.Speech, (*SOUND, EVENTS), _SPOKEN,
        {"model": "tts-1", "voice": "nova", "input": "Good morning. The rain has stopped."},
    ),
    _Door(
        "post", "/v1/audio/dialogue", "Speak a conversation.", forms.Conversation, forms.Dialogue, (*SOUND, EVENTS),
        _SPOKEN, {"input": [{"speaker": "A", "text": "Good morning!"}, {"speaker": "B", "text": "Hello."}]},
    ),
    _Door("get", "/v1/audio/voices", "The voices, and one's own among them.", forms.Voices),
    _Door(
        "post", "/v1/audio/voices", "Keep a voice of one's own.", forms.KnownVoice, refuses=(400, 413, 503),
    ),
    _Door("get", "/v1/audio/voices/{id}", "One of one's own voices.", forms.KnownVoice, refuses=(404,)),
    _Door("delete", "/v1/audio/voices/{id}", "Forget one of one's own voices.", forms.DeletedVoice, refuses=(404,)),
    _Door("get", "/v1/audio/models", "The model, and the names that it answers to.", forms.Models),
    _Door("get", "/v1/models", "The same.", forms.Models),
    _Door("get", "/v1/models/{name}", "One of them.", forms.Model, refuses=(404,)),
    _Door("get", "/health", "That the server is up, and how busy it is.", forms.Health),
    _Door("get", "/ready", "Whether jobs should be sent here now: status 200, else 503.", forms.Ready),
    _Door("get", "/metrics", "Figures for Prometheus.", media=("text/plain",)),
)  # fmt: skip
_FORM = {
    "type": "object",
    "required": ["audio_sample", "ref_text", "name", "consent"],
    "properties": {
        "audio_sample": {"type": "string", "format": "binary", "description": "1 to 30 seconds of one person"},
        "ref_text": {"type": "string", "description": "exactly what is said in it"},
        "name": {"type": "string", "maxLength": 40},
        "consent": {"type": "string", "description": "that the person agrees, in any words but a no"},
        "description": {"type": "string"},
    },
}


@cache
def openapi() -> dict[str, Any]:
    """OpenAPI 3.1."""
    models = {model for door in DOORS for model in (door.gives, door.takes) if model is not None} | {forms.Failed}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, written = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for door in DOORS:
        paths.setdefault(door.path, {})[door.method] = _operation(door)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Conversational speech", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": written["$defs"],
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "CSM_API_KEY, if it is set"}
            },
        },
        "security": [{}, {"key": []}],
    }


def _operation(door: _Door) -> dict[str, Any]:
    content: dict[str, Any] = {media: {"schema": {"type": "string"}} for media in door.media}
    if door.gives is not None:
        content["application/json"] = {"schema": _named(door.gives)}
    refusals = {str(status): _refusal() for status in (*door.refuses, 401, 403)}
    told: dict[str, Any] = {
        "operationId": f"{door.method}{door.path}".translate(str.maketrans("/", "_", "{}")),
        "summary": door.does,
        "responses": {"200": {"description": "OK", "content": content}, **refusals},
    }
    if "{" in door.path:
        name = door.path.partition("{")[2].partition("}")[0]
        told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if door.takes is not None:
        body = {"schema": _named(door.takes)} | ({"example": door.example} if door.example else {})
        told["requestBody"] = {"required": True, "content": {"application/json": body}}
    elif door.method == "post":
        told["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    return told


def _named(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _refusal() -> dict[str, Any]:
    return {"description": "Refused", "content": {"application/json": {"schema": _named(forms.Failed)}}}
