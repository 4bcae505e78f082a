"""Sends the campaign's requests and says what is wrong with what comes back."""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from csm.web.asked import FAILED
from tests.campaign.server import TOP, Server

PATIENCE = 5.0  # seconds that an answer may take
UPLOADED = "@uploaded"  # in a request's body, the place of its file
BUSY = (503, 507)  # said by a server that is full, and as it should be
SERVER_SIDE = re.compile(r'Traceback \(most recent|File "[^"]*", line \d+|site-packages')
ENDS = ('"msg":"close_stream"', '"msg": "close_stream"')
MOST = 1 << 24  # bytes of an answer that are looked at


@dataclass(frozen=True)
class Request:
    """One request, or several: `file` (its name and bytes) is uploaded first, and a call of a function is followed to
    its end where `follows`. The client `leaves` after so many bytes of the answer."""

    method: str
    path: str
    body: bytes = field(default=b"", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    file: tuple[str, bytes] | None = field(default=None, repr=False)
    follows: bool = False
    leaves: int | None = None

    def __repr__(self) -> str:
        shown = {"file": self.file and (self.file[0], self.file[1][:300], len(self.file[1])), "leaves": self.leaves}
        body = self.body if len(self.body) < 600 else self.body[:600] + b"..."
        told = ", ".join(f"{name}={value!r}" for name, value in shown.items() if value is not None)
        return f"{self.method} {self.path} {dict(self.headers)} {body!r} {told}"


@dataclass(frozen=True)
class Answer:
    """What came back, in `seconds`; a `status` of 0 where nothing did, and `text` says why."""

    status: int
    text: str
    media_type: str
    seconds: float


class Fault(AssertionError):
    """What is wrong with an answer. Its first line names the kind."""


def sent(server: Server, request: Request, patience: float = PATIENCE) -> Answer:
    """The answer to a request, with those to what belongs to it."""
    if request.file is not None:
        name, data = request.file
        upload = _upload(name, data)
        answer = _asked(server, upload, patience)
        if answer.status != 200:
            return answer
        place = json.loads(answer.text)[0]
        body = request.body.replace(UPLOADED.encode(), json.dumps(place)[1:-1].encode())
        return sent(server, replace(request, body=body, file=None), patience)
    answer = _asked(server, replace(request, leaves=None) if request.follows else request, patience)
    if request.follows and answer.status == 200 and answer.text.startswith("{"):
        event, session = json.loads(answer.text).get("event_id"), _session(request)
        path = f"/gradio_api/queue/data?session_hash={session}" if session else f"{request.path}/{event}"
        return _asked(server, Request("GET", path, leaves=request.leaves), patience)
    return answer


def _session(request: Request) -> str:
    return json.loads(request.body).get("session_hash", "") if "queue/join" in request.path else ""


def _upload(name: str, data: bytes) -> Request:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    kind = ("Content-Type", "multipart/form-data; boundary=x")
    return Request("POST", "/gradio_api/upload", head.encode() + data + b"\r\n--x--\r\n", (kind,))


def _asked(server: Server, request: Request, patience: float) -> Answer:
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience)
    text, kind, status = "", "", 0
    try:
        path = quote(request.path, safe="/:?&=%#@!$'()*+,;[]~")
        connection.putrequest(request.method, path, skip_accept_encoding=True)
        connection.putheader("Content-Length", str(len(request.body)))
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.endheaders(request.body)
        if request.leaves == 0:
            return Answer(204, "", "", time.monotonic() - start)
        response = connection.getresponse()
        status, kind = response.status, response.headers.get("content-type", "")
        data = bytearray()
        most = MOST if request.leaves is None else request.leaves
        while len(data) < most and (piece := response.read1(min(1 << 16, most - len(data)))):
            data += piece
            if any(end.encode() in piece for end in ENDS) or time.monotonic() - start > patience:
                break
        text = data.decode("utf-8", "replace") if "audio" not in kind else ""
    except TimeoutError:
        return Answer(0, f"no answer in {patience:.0f} s after {text[:200]!r}", kind, time.monotonic() - start)
    except BrokenPipeError:  # refused before all of it was sent
        status, text = 413, ""
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, f"broken off: {error!r}", kind, time.monotonic() - start)
    finally:
        connection.close()
    return Answer(status, text, kind, time.monotonic() - start)


def judged(server: Server, request: Request, answer: Answer, patience: float = PATIENCE) -> None:
    """Raises `Fault` for an answer that is no answer, says what nobody should know, or came too late."""
    if answer.status == 0:
        raise Fault(answer.text)
    if answer.seconds > patience:
        raise Fault(f"hang: {answer.seconds:.1f} s")
    if answer.status >= 500 and answer.status not in BUSY:
        raise Fault(f"status {answer.status}: {answer.text[:300]}")
    if FAILED in answer.text or "Something went wrong in the program" in answer.text:
        raise Fault(f"a failure of the program: {answer.text[:300]}")
    if found := SERVER_SIDE.search(answer.text):
        raise Fault(f"the program's insides: {answer.text[max(0, found.start() - 100) :][:400]}")
    gradio = request.path.startswith("/gradio_api") and answer.status < 400 and "event: error" not in answer.text
    for place in _places(server):
        text = answer.text.replace(str(server.folder), "") if gradio else answer.text
        if (at := text.find(place)) >= 0:
            raise Fault(f"a path of the server: {text[max(0, at - 200) : at + 200]}")
    if "event: error\ndata: null" in answer.text or '"error":null' in answer.text.replace(" ", ""):
        raise Fault(f"an error without a sentence: {answer.text[:300]}")
    if answer.status >= 400 and request.leaves is None and request.method != "HEAD":
        _told(request, answer)


def _places(server: Server) -> list[str]:
    return [str(server.folder), str(TOP), sys.prefix, os.path.dirname(os.__file__), str(Path.home()) + "/"]


def _told(request: Request, answer: Answer) -> None:
    """Refusals on our own doors have a sentence."""
    if "json" not in answer.media_type:
        return
    body = json.loads(answer.text)
    if request.path.startswith("/v1"):
        body = body.get("error") if isinstance(body, dict) else None
        sentence = body.get("message") if isinstance(body, dict) else None
    elif request.path.startswith("/csm"):
        sentence = body.get("error")
    else:
        return
    if not isinstance(sentence, str) or len(sentence) < 10:
        raise Fault(f"a refusal without a sentence: {answer.text[:300]}")
