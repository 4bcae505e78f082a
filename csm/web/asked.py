"""What a request says and what it is told: JSON read within its budget, refusals and failures in one sentence. Between
the server and the handlers of all doors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

FAILED = "Something went wrong in the program, not in what you did; please try again."
_LONE = re.compile("[\ud800-\udfff]")


class BodyTooLongError(Exception):
    """The body has more bytes than are read."""


async def read_json(request: Request, longest: int) -> Any:
    """The JSON of a body. Halves of letters, which no text has, become �, since no answer could hold them. Raises
    `BodyTooLongError`, and `ValueError` for what is no JSON: NaN and Infinity are none."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > longest:
            raise BodyTooLongError
    try:
        return whole(json.loads(bytes(body), parse_constant=_refuse, parse_float=_finite))
    except RecursionError as error:
        raise ValueError("Too deep.") from error


def whole(value: Any) -> Any:
    """JSON data with � for every half of a letter."""
    if isinstance(value, str):
        return _LONE.sub("\ufffd", value)
    if isinstance(value, list):
        return [whole(one) for one in value]
    if isinstance(value, dict):
        return {whole(name): whole(one) for name, one in value.items()}
    return value


class Told(JSONResponse):
    """JSON of anything: what is no number is told as none."""

    def render(self, content: Any) -> bytes:
        return json.dumps(_told(content), separators=(",", ":"), allow_nan=False).encode("ascii")


def asker(request: Any) -> str:
    """Who asks, by a name that says nothing about them: for the queue to know them again."""
    client = getattr(request, "client", None)
    said = f"{getattr(client, 'host', '')} {request.headers.get('authorization', '')}"
    return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:16]


def _told(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _told(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number.")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("A number is too large.")
    return number
