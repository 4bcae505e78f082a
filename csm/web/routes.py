"""The page's own routes: what its script asks of the server, from a changed line of the script to live sound.

Everything but sound is JSON. A refusal has status 400 and says in `error` what is wrong and in `place` where the
user gave it. Speaking answers with a stream of JSON lines, the live sound among them as 16-bit samples in base64.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import mimetypes
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from csm.config import SAMPLE_RATE
from csm.conversation.events import Performed, TurnChunk, Waiting
from csm.conversation.positions import PromptLengths
from csm.conversation.project import SUFFIX
from csm.conversation.scripts.decoding import decoded
from csm.conversation.studio import Job
from csm.errors import InputError
from csm.limits import LARGEST_UPLOAD, LONGEST_BODY, LONGEST_SCRIPT_FILE, check_script
from csm.speech.voices import fetched
from csm.web.asked import FAILED, BodyTooLongError, Told, asker, read_json
from csm.web.downloads import roomy
from csm.web.endpoints import MisplacedError
from csm.web.following import attended, followed
from csm.web.forms import Form
from csm.web.pages import Page, Pages
from csm.web.views import event_view, page_view, pcm

SCRIPTS = {path.name: path for path in (Path(__file__).parent / "page").glob("*.js")}
TOO_LONG = "That is more than this page takes; make it shorter."

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class PageRoutes:
    """The handlers, over all open pages."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._lengths = PromptLengths()

    def routes(self) -> list[BaseRoute]:
        """What to mount on the app's server, under `/csm`."""
        told: dict[str, Handler] = {
            "view": self.view,
            "plan": self.plan,
            "keep": self.keep,
            "speak": self.speak,
            "stop": self.stop,
            "open": self.open,
            "read": self.read,
        }
        posts: list[BaseRoute] = [
            Route(f"/csm/{name}", _guarded(handler), methods=["POST"]) for name, handler in told.items()
        ]
        return [
            *posts,
            Route("/csm/script/{name}", _guarded(self.script), methods=["GET"]),
            Route("/csm/voice/{token}", _guarded(self.voice), methods=["GET"]),
            Route("/csm/whole/{token}/{version}", _guarded(self.whole), methods=["GET"]),
            Route("/csm/take/{token}/{key}", _guarded(self.take), methods=["GET"]),
            Route("/csm/save/{token}/{kind}", _guarded(self.save), methods=["GET"]),
        ]

    async def script(self, request: Request) -> Response:
        """A file of the page's JavaScript."""
        if (path := SCRIPTS.get(request.path_params["name"])) is None:
            return Response(status_code=404)
        return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    async def view(self, request: Request) -> Response:
        """What the page showed last, for one that was loaded again."""
        data = await _json(request)
        page = self._pages.known(data.get("token"))
        return await self._shown(page or self._pages.blank())

    async def plan(self, request: Request) -> Response:
        """Take over what stands in the form."""
        page, data = await self._asked(request, new=True)
        await asyncio.to_thread(page.follow, Form.read(data))
        return await self._shown(page)

    async def keep(self, request: Request) -> Response:
        """Let another take be heard."""
        page, data = await self._asked(request)

        def keep() -> None:
            session = page.follow(Form.read(data))
            session.keep(_number(data, "turn"), _number(data, "take"))

        await asyncio.to_thread(keep)
        return await self._shown(page)

    async def speak(self, request: Request) -> Response:
        """Speak from turn `turn` on or, `again`, redo that turn; answers while it happens."""
        page, data = await self._asked(request, new=True)
        turn, again, who = _number(data, "turn"), data.get("again") is True, asker(request)
        job = await asyncio.to_thread(page.speak, Form.read(data), turn, again, who)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._happening(request, page, job), media_type="text/event-stream", headers=headers)

    async def stop(self, request: Request) -> Response:
        """End what is being spoken at its next frame."""
        data = await _json(request)
        if (page := self._pages.known(data.get("token"))) is not None:
            page.halt()
        return Told({})

    async def open(self, request: Request) -> Response:
        """Open the project file that is the body; the page's token is in the query."""
        page = self._pages.page(request.query_params.get("token"))
        path = page.folder / f"opened-{secrets.token_hex(4)}{SUFFIX}"
        try:
            size = 0
            with roomy(), open(path, "wb") as file:
                async for part in request.stream():
                    size += len(part)
                    if size > LARGEST_UPLOAD:
                        raise InputError("This file is too large to be a project of this program.")
                    file.write(part)
            who = asker(request)
            await attended(request, lambda given_up: page.open(path, given_up, who))
        except InputError as error:
            # The file has a name of ours here; the user knows it by another.
            told = str(error).replace(path.name, "The file")
            raise MisplacedError(told, "open", error.code) from error
        finally:
            path.unlink(missing_ok=True)
        return await self._shown(page)

    async def read(self, request: Request) -> Response:
        """The text of the script file that is the body, whatever its encoding; its `name` is in the query."""
        name, data = request.query_params.get("name", "")[:80] or "The file", bytearray()
        async for part in request.stream():
            data += part
            if len(data) > LONGEST_SCRIPT_FILE:
                raise MisplacedError("This file is too large to be a script.", "open")
        try:
            script = decoded(bytes(data), name)
            check_script(script.text)
        except InputError as error:
            raise MisplacedError(str(error), "open", error.code) from error
        return Told({"text": script.text, "note": script.note})

    async def voice(self, request: Request) -> Response:
        """A voice's recording, named in the query."""
        page = self._pages.page(request.path_params["token"], new=False)
        voice = page.offered().get(request.query_params.get("name", ""))
        if voice is None:
            raise InputError("There is no such voice any more; choose another one.")
        return FileResponse((await asyncio.to_thread(fetched, voice)).path)

    async def whole(self, request: Request) -> Response:
        """The conversation, for the player."""
        return FileResponse(
            await asyncio.to_thread(self._pages.page(request.path_params["token"], new=False).whole_file)
        )

    async def take(self, request: Request) -> Response:
        """One take, for the player of its card."""
        page = self._pages.page(request.path_params["token"], new=False)
        return FileResponse(await asyncio.to_thread(page.clip_file, request.path_params["key"]))

    async def save(self, request: Request) -> Response:
        """A download."""
        with_place = self._pages.page(request.path_params["token"], new=False)
        try:
            path = await asyncio.to_thread(with_place.save, request.path_params["kind"])
        except InputError as error:
            raise MisplacedError(str(error), "save", error.code) from error
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return FileResponse(path, media_type=media_type, filename=path.name)

    async def _asked(self, request: Request, new: bool = False) -> tuple[Page, dict[str, Any]]:
        data = await _json(request)
        return self._pages.page(data.get("token"), new), data

    async def _shown(self, page: Page) -> Response:
        def view() -> dict[str, Any]:
            with page.lock:
                return page_view(page, self._lengths)

        return Told(await asyncio.to_thread(view))

    async def _happening(self, request: Request, page: Page, job: Job) -> AsyncIterator[bytes]:
        """The stream. Its last line is `end`, with the page's view and what the run cost, or `error`."""
        clock, updates = Clock(job), None
        try:
            updates = followed(request, page.begin(job), job)
            async for update in updates:
                page.happened(update)
                line = await asyncio.to_thread(event_view, page, update)
                if line is None:
                    continue
                if isinstance(update, TurnChunk):
                    clock.heard()
                    line["pcm"] = base64.b64encode(pcm(update.audio)).decode()
                if isinstance(update, Performed):
                    page.end(job)
                    line["told"] = clock.told()
                    line["view"] = await asyncio.to_thread(page_view, page, self._lengths)
                if isinstance(update, Waiting):
                    clock.waits()
                yield _line(line)
        except InputError as error:
            yield _line({"type": "error", "error": str(error), "code": error.code})
        except Exception:
            logger.exception("Speaking failed.")
            yield _line({"type": "error", "error": FAILED})
        finally:
            if updates is not None:
                await updates.aclose()
            page.end(job)


class Clock:
    """What one run costs: seconds of work for seconds of sound, and how soon it is heard."""

    def __init__(self, job: Job) -> None:
        self._session = job.session
        self._seconds, self._samples = job.session.spent.seconds, job.session.spent.samples
        self._began = time.perf_counter()
        self._first: float | None = None

    def waits(self) -> None:
        """The model is not there yet."""
        self._began = time.perf_counter()

    def heard(self) -> None:
        """Sound leaves."""
        if self._first is None:
            self._first = time.perf_counter() - self._began

    def told(self) -> dict[str, float | None]:
        """`seconds` of work, `made` seconds of sound, their `factor`, and the seconds to the `first` sound."""
        spent = self._session.spent
        seconds, made = spent.seconds - self._seconds, (spent.samples - self._samples) / SAMPLE_RATE
        return {
            "seconds": round(seconds, 2),
            "made": round(made, 2),
            "factor": round(seconds / made, 2) if made > 0 else None,
            "first": None if self._first is None else round(self._first, 2),
        }


def _guarded(handler: Handler) -> Handler:
    """`handler` with refusals and failures told as JSON."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except MisplacedError as error:
            return Told({"error": str(error), "place": error.place, "code": error.code}, 400)
        except InputError as error:
            return Told({"error": str(error), "place": "", "code": error.code}, 400)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:
            logger.exception("A request of the page failed.")
            return Told({"error": FAILED, "place": "", "code": "failed"}, 500)

    return answer


async def _json(request: Request) -> dict[str, Any]:
    try:
        data = await read_json(request, LONGEST_BODY)
    except BodyTooLongError as error:
        raise MisplacedError(TOO_LONG, "script") from error
    except ValueError as error:
        raise InputError("The page asked something that can't be read: reload it.") from error
    return data if isinstance(data, dict) else {}


def _number(data: dict[str, Any], name: str) -> int:
    value = data.get(name, 0)
    if type(value) is not int:
        raise InputError("The page asked for a turn that is none: reload it.")
    return value


def _line(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
