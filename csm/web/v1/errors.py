"""Refusals of `/v1` in the shape of OpenAI's errors, always with the field that they are about."""

from __future__ import annotations

import hmac
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

from csm.conversation.waiting import QueueFull
from csm.errors import InputError
from csm.web.asked import BodyTooLongError, Told, read_json

BROKEN = "Something went wrong in the program, not in the request; please try again."

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class ApiError(Exception):
    """A refusal in the shape of OpenAI's errors; `sentence` says what is wrong and what to do."""

    def __init__(
        self,
        sentence: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after
        self.body = {"error": {"message": sentence, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Told(self.body, self.status, headers)


def refused(error: InputError, param: str | None = None) -> ApiError:
    """What the program can't use, as a refusal."""
    if isinstance(error, QueueFull):
        return ApiError(str(error), None, "server_overloaded", 503, "server_error", error.seconds)
    return ApiError(str(error), param, error.code or "invalid_value")


def broken() -> ApiError:
    """What is said where the program itself went wrong."""
    return ApiError(BROKEN, status=500, kind="server_error", code="server_error")


def misread(error: ValidationError, body: dict[str, Any], missing: dict[str, str]) -> ApiError:
    """What pydantic found first, in one sentence; `missing` has that of fields that can't be left out."""
    found: Any = error.errors()[0]
    name, about = field_name(found["loc"]), found.get("ctx", {})
    if name in missing and found["type"] in ("missing", "string_type"):
        return ApiError(missing[name], name, "missing_required_parameter")
    if found["type"] == "string_too_long":
        told = f"{name} has {len(found['input'])} characters and at most {about['max_length']} are taken."
        return ApiError(told, name, "string_above_max_length")
    if "error" in about:  # one of our own sentences
        return ApiError(str(about["error"]), name, "invalid_value")
    if "expected" in about:
        told = f"{name} can't be “{str(found['input'])[:60]}”; use one of {about['expected']}."
        return ApiError(told, name, "invalid_value")
    return ApiError(f"{name} can't be used: {found['msg'].lower()}.", name, "invalid_value")


def field_name(place: Sequence[str | int]) -> str:
    """Where in the body, as in `input[2].text`."""
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


async def body_of(request: Request, longest: int) -> dict[str, Any]:
    """The JSON object that a request brings. Raises `ApiError`."""
    try:
        body = await read_json(request, longest)
    except BodyTooLongError as error:
        raise ApiError("The body is too long.", code="body_too_long", status=413) from error
    except ValueError as error:
        raise ApiError("The body is not JSON that can be read.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object with the fields model, input and voice.", code="invalid_body")
    return body


def check_key(connection: HTTPConnection, key: str | None) -> None:
    """Raise `ApiError` for one who has not shown the `key`; None asks for none."""
    if key is None:
        return
    scheme, _, given = connection.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise ApiError("The API key is missing or wrong: send it as a bearer token.", None, "invalid_api_key", 401)


def leftovers(routes: Sequence[BaseRoute]) -> BaseRoute:
    """What answers for paths of `/v1` that none of the `routes` has, or not with that method; mount it behind them."""

    async def answer(request: Request) -> Response:
        known = any(route.matches(request.scope)[0] is not Match.NONE for route in routes)
        if known:
            return ApiError("This route takes another method.", code="method_not_allowed", status=405).response()
        return ApiError("There is no such route; /docs has all of them.", code="not_found", status=404).response()

    return Route("/v1/{rest:path}", answer, methods=METHODS)


def guarded(handler: Handler, key: str | None) -> Handler:
    """`handler` behind the key, its refusals and failures told in the API's shape."""

    async def answer(request: Request) -> Response:
        try:
            check_key(request, key)
            return await handler(request)
        except ApiError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except InputError as error:
            return refused(error).response()
        except Exception:
            logger.exception("A request for speech failed.")
            return broken().response()

    return answer
