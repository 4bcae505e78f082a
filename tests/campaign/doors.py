"""The doors of the app and what is sent to them: requests that are nearly right, and some that are not."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from csm.speech.voices import own_voice, save_voice
from tests.campaign.inputs import (
    anything,
    bodies,
    changed_zips,
    letters,
    near,
    near_schema,
    numbers,
    plain_scripts,
    scripts,
    short,
    sounds,
    texts,
)
from tests.campaign.judge import UPLOADED, Request, sent
from tests.campaign.server import TOP, Server

JSON = ("Content-Type", "application/json")
MCP = (JSON, ("Accept", "application/json, text/event-stream"))
LONG = 60.0  # seconds for what the campaign itself needs
QUIET = {"max_turn_seconds": 0.4}
leaving = st.sampled_from([None] * 12 + [0, 1, 200])


@dataclass(frozen=True)
class Known:
    """What a client can know of the server: the page on which something was spoken and its files, what `/v1` takes,
    and Gradio's functions, each with its number, its name and the kinds of its inputs."""

    token: str
    take: str
    version: str
    project: bytes
    voice: bytes
    schema: dict[str, Any]
    functions: tuple[tuple[int, str, tuple[str, ...]], ...]


def look_around(server: Server) -> Known:
    """Ask the server for all of it."""

    def asked(method: str, path: str, body: Any = None) -> Any:
        request = Request(method, path, b"" if body is None else json.dumps(body).encode(), (JSON,))
        answer = sent(server, request, LONG)
        assert answer.status == 200, answer
        return answer.text

    token = secrets.token_hex(16)
    form = {"token": token, "script": "A: One.\nB: Two (softly).", "settings": QUIET}
    lines = [
        json.loads(line.removeprefix("data: ")) for line in asked("POST", "/csm/speak", form).split("\n\n") if line
    ]
    view = lines[-1]["view"]
    config = json.loads(asked("GET", "/config"))
    kinds = {one["id"]: one["type"] for one in config["components"]}
    functions = tuple(
        (one["id"], one["api_name"] or "", tuple(kinds[each] for each in one["inputs"]))
        for one in config["dependencies"]
    )
    schema = json.loads(asked("GET", "/v1/audio/speech/schema"))
    key, version = view["turns"][0]["takes"][0]["key"], view["sound"]["version"]
    return Known(token, key, version, _bytes(server, f"/csm/save/{token}/csm"), _voice(), schema, functions)


def warm_up(server: Server) -> None:
    """Let it load what listens, which it does when somebody first asks: memory that stays is no leak."""
    recording = ("slt.wav", (TOP / "prompts" / "slt.wav").read_bytes())
    for name, more in ("transcribe", []), ("check_prompt", [""]):
        data = [{"path": UPLOADED, "meta": {"_type": "gradio.FileData"}}, *more]
        body = json.dumps({"data": data}).encode()
        sent(server, Request("POST", f"/gradio_api/run/{name}", body, (JSON,), file=recording), LONG)


def _bytes(server: Server, path: str) -> bytes:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=LONG) as answer:
        return answer.read()


def _voice() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tone = 0.3 * torch.sin(torch.arange(36_000) / 24_000 * 2 * torch.pi * 220)
        voice = own_voice(Path(folder), "tone", tone, "A tone.")
        save_voice(Path(folder) / "tone.voice", voice)
        return (Path(folder) / "tone.voice").read_bytes()


def doors(known: Known) -> dict[str, st.SearchStrategy[Request]]:
    """Each door by its name."""
    made: dict[str, Callable[[Known], st.SearchStrategy[Request]]] = {
        "v1": _v1,
        "page": _page,
        "open": _open,
        "files": _files,
        "functions": _functions,
        "buttons": _buttons,
        "gradio": _gradio,
        "mcp": _mcp,
        "sockets": _sockets,
        "strangers": _strangers,
    }
    return {name: short(make(known)) for name, make in made.items()}


def _post(path: str, body: st.SearchStrategy[bytes], **more: Any) -> st.SearchStrategy[Request]:
    return st.builds(lambda data, leaves: Request("POST", path, data, (JSON,), leaves=leaves, **more), body, leaving)


def _v1(known: Known) -> st.SearchStrategy[Request]:
    schema = known.schema
    needed = {"input": st.one_of(st.just("Hi."), texts), "voice": st.sampled_from(["slt", "alloy", "BDL"])}
    good = st.fixed_dictionaries(
        needed,
        optional={
            "response_format": st.sampled_from(["mp3", "opus", "flac", "wav", "pcm", "aac"]),
            "stream_format": st.sampled_from(["audio", "sse", None]),
            **{name: near(numbers) for name in ("seed", "temperature", "top_k", "min_p", "speed")},
        },
    )
    names = texts.map(lambda name: name.encode("utf-8", "replace").decode()[:200])
    paths = ("/v1/audio/speech", "/v1/audio/voices", "/v1/models", "/v1/audio/speech/schema", "/v1/", "/v1/x")
    return st.one_of(
        _post("/v1/audio/speech", bodies(good)),
        _post("/v1/audio/speech", bodies(near_schema(schema))),
        st.builds(Request, st.sampled_from(["GET", "PUT", "DELETE", "HEAD", "OPTIONS"]), st.sampled_from(paths)),
        names.map(lambda name: Request("GET", f"/v1/models/{name}")),
    )


def _form(known: Known) -> st.SearchStrategy[Any]:
    token = st.one_of(st.just(known.token), st.uuids().map(lambda drawn: drawn.hex), texts, anything)
    voices = near(
        st.dictionaries(st.one_of(st.sampled_from(["A", "B", "Anna"]), texts), st.one_of(st.just("slt"), texts))
    )
    settings = near(
        st.fixed_dictionaries(
            {"max_turn_seconds": st.just(0.4)},
            optional={name: near(numbers) for name in ("seed", "temperature", "topk", "takes", "min_p", "max_words")},
        )
    )
    return st.fixed_dictionaries(
        {"token": token, "script": near(scripts)},
        optional={
            "voices": voices,
            "settings": settings,
            "turn": near(st.integers(-1, 3)),
            "take": near(st.integers(-1, 3)),
            "again": near(st.booleans()),
            "as_it_stands": near(st.booleans()),
        },
    )


def _page(known: Known) -> st.SearchStrategy[Request]:
    said = st.builds(
        lambda form, script: {**form, "script": script, "settings": QUIET, "token": secrets.token_hex(16)},
        _form(known).filter(lambda form: isinstance(form, dict)),
        plain_scripts,
    )
    names = ("view", "plan", "keep", "speak", "stop")
    return st.one_of(
        [_post("/csm/speak", bodies(said))] + [_post(f"/csm/{name}", bodies(near(_form(known)))) for name in names]
    )


def _open(known: Known) -> st.SearchStrategy[Request]:
    files = st.one_of(changed_zips(known.project), changed_zips(known.project), st.binary(max_size=300))
    return st.builds(
        lambda data, leaves: Request("POST", f"/csm/open?token={secrets.token_hex(16)}", data, leaves=leaves),
        files,
        leaving,
    )


def _files(known: Known) -> st.SearchStrategy[Request]:
    odd = st.one_of(
        texts.map(lambda name: name.encode("utf-8", "replace").decode()[:100].replace("?", "")),
        st.sampled_from(["..", "%2e%2e%2f", "%00", "..%2f..%2fetc%2fpasswd", "*"]),
    )
    token = st.one_of(st.just(known.token), st.just(secrets.token_hex(16)), odd)
    kinds = st.one_of(st.sampled_from(["wav", "mp3", "flac", "stems", "srt", "vtt", "zip", "csm"]), odd)
    version, key = st.one_of(st.just(known.version), odd), st.one_of(st.just(known.take), odd)
    ranges = st.sampled_from([(), (("Range", "bytes=0-10"),), (("Range", "bytes=9-1"),), (("Range", "bytes=x"),)])
    paths = st.one_of(
        st.builds("/csm/save/{}/{}".format, token, kinds),
        st.builds("/csm/whole/{}/{}".format, token, version),
        st.builds("/csm/take/{}/{}".format, token, key),
        st.builds("/csm/voice/{}?name={}".format, token, st.one_of(st.just("slt"), odd)),
        st.builds("/csm/script/{}".format, st.one_of(st.just("page.js"), odd)),
    )
    return st.builds(lambda path, given: Request("GET", path, headers=given), paths, ranges)


def _given(kind: str) -> st.SearchStrategy[Any]:
    """What a component of this kind may be given."""
    if kind in ("audio", "file", "uploadbutton"):
        uploaded = {"path": UPLOADED, "meta": {"_type": "gradio.FileData"}}
        paths = ("/etc/passwd", "", "..", "http://127.0.0.1:1/x", "file:///etc/passwd", "a" * 5_000)
        foreign = st.builds(
            lambda path, named: {named: path, "meta": {"_type": "gradio.FileData"}},
            st.sampled_from(paths),
            st.sampled_from(["path", "url"]),
        )
        return st.one_of(st.just(uploaded), st.just(uploaded), st.just(uploaded), foreign, anything)
    if kind == "number":
        return near(numbers)
    return near(texts)


@st.composite
def _called(draw: st.DrawFn, known: Known, named: bool) -> Request:
    number, name, kinds = draw(st.sampled_from([one for one in known.functions if bool(one[1]) or not named]))
    data = [draw(_given(kind)) for kind in kinds]
    if name == "generate":
        data = _script_in(draw, data)
    if draw(st.integers(0, 9)) == 0:
        data = draw(st.one_of(st.just(data[:-1]), st.just([*data, 1]), anything))
    has_file = UPLOADED in json.dumps(data)
    file = None
    if has_file:
        voice = "uploadbutton" in kinds
        file = ("own.voice", draw(changed_zips(known.voice))) if voice else draw(sounds())
    leaves = draw(leaving)
    if named:
        path = draw(st.sampled_from([f"/gradio_api/call/{name}"] * 3 + [f"/gradio_api/run/{name}"]))
        body = {"data": data}
    else:
        path = "/gradio_api/queue/join"
        body = {"data": data, "fn_index": number, "session_hash": secrets.token_hex(6), "trigger_id": None}
    follows = not path.startswith("/gradio_api/run")
    return Request("POST", path, json.dumps(body).encode(), (JSON,), file, follows, leaves)


def _script_in(draw: st.DrawFn, data: list[Any]) -> list[Any]:
    """Mostly a script that is spoken soon, with everything else nearly right."""
    usual = [draw(plain_scripts), "slt", "bdl", 7, 0.9, 50, 0.4, None, "", None, ""]
    usual += [None] * (len(data) - len(usual))
    return [one if draw(st.integers(0, 5)) else given for one, given in zip(usual, data)]


def _functions(known: Known) -> st.SearchStrategy[Request]:
    return _called(known, True)


def _buttons(known: Known) -> st.SearchStrategy[Request]:
    return _called(known, False)


def _gradio(known: Known) -> st.SearchStrategy[Request]:
    odd = st.one_of(
        texts.map(lambda name: name.encode("utf-8", "replace").decode()[:100]),
        st.sampled_from(["/etc/passwd", "http://127.0.0.1:1/", "..%2f..%2fetc%2fpasswd", "%00", "x.wav"]),
    )
    gets = (
        *(
            "file={}",
            "file/{}",
            "proxy={}",
            "stream/{}",
            "custom_component/{}/client/component/index.js",
            "theme.css?{}",
        ),
        *(
            "queue/data?session_hash={}",
            "queue/status",
            "info",
            "openapi.json",
            "startup-events",
            "deep_link?{}",
            "theme.css?{}",
        ),
        *("monitoring", "monitoring/{}", "monitoring/summary", "call/generate/{}", "call/v2/generate/{}", "app_id"),
        *("vibe-code", "profiling/summary", "stream/{}/1/2/playlist.m3u8", "stream/{}/1/2/x.ts", "pwa_icon/{}", "{}"),
    )
    posts = (
        *("run/{}", "api/{}", "call/{}", "call/v2/{}", "queue/join", "reset", "cancel", "component_server", "{}"),
        *("stream/{}", "stream/{}/close", "process_recording", "vibe-edit", "upload", "upload?upload_id={}", "login"),
    )
    fields = ("data", "fn_index", "session_hash", "event_id", "component_id", "fn_name", "trigger_id", "event_data")
    json_of_it = st.dictionaries(st.sampled_from(fields), st.one_of(anything, st.integers(0, 40)), max_size=6)
    asking = st.builds(
        lambda path, name: Request("GET", f"/gradio_api/{path.format(name)}"), st.sampled_from(gets), odd
    )
    pages = st.builds(
        lambda path, name: Request("GET", f"/{path}{name}"), st.sampled_from(["", "static/", "assets/", "svelte/"]), odd
    )
    endless = st.builds(
        lambda path, name: Request("GET", f"/gradio_api/{path}{name}", leaves=0),
        st.sampled_from(["heartbeat/", "upload_progress?upload_id="]),
        odd,
    )
    telling = st.builds(
        lambda path, name, data: Request("POST", f"/gradio_api/{path.format(name)}", data, (JSON,)),
        st.sampled_from(posts),
        odd,
        bodies(json_of_it),
    )
    sent_files = st.builds(
        lambda data, kind: Request("POST", "/gradio_api/upload", data, (("Content-Type", kind),)),
        st.one_of(st.binary(max_size=300), st.just(b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n')),
        st.sampled_from(["multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "multipart/x"]),
    )
    return st.one_of(asking, pages, endless, telling, telling, sent_files)


def _mcp(known: Known) -> st.SearchStrategy[Request]:
    names = st.one_of(st.sampled_from([one[1] for one in known.functions if one[1]]), texts)
    arguments = st.dictionaries(
        st.one_of(
            st.sampled_from(["script", "recording", "audio", "transcript", "voice_a", "max_turn_seconds"]), texts
        ),
        st.one_of(st.just("A: Hi."), anything),
        max_size=4,
    )
    methods = st.sampled_from(
        ["initialize", "tools/list", "tools/call", "ping", "prompts/list", "resources/read", "notifications/cancelled"]
    )
    call = st.builds(lambda name, given: {"name": name, "arguments": given}, names, near(arguments))
    message = st.fixed_dictionaries(
        {"jsonrpc": near(st.just("2.0")), "method": near(methods)},
        optional={"id": near(st.integers(0, 9)), "params": near(call)},
    )
    called = st.builds(
        lambda number, params: {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params},
        st.integers(0, 9),
        call,
    )
    posted = st.builds(
        lambda data, leaves: Request("POST", "/gradio_api/mcp/", data, MCP, leaves=leaves),
        st.one_of(bodies(called), bodies(near(message)), bodies(st.lists(message, max_size=3))),
        leaving,
    )
    others = st.builds(
        lambda method, path: Request(
            method, f"/gradio_api/mcp/{path}", headers=MCP, leaves=0 if method == "GET" else None
        ),
        st.sampled_from(["GET", "DELETE", "PUT"]),
        st.sampled_from(["", "sse", "schema", "messages/", "x"]),
    )
    return st.one_of(posted, posted, posted, others)


def _sockets(known: Known) -> st.SearchStrategy[Request]:
    rising = (
        *(("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    )
    paths = ("/", "/v1/realtime", "/v1/realtime?model=nano", "/gradio_api/queue/join", "/csm/speak", "/x")
    protocols = st.one_of(
        st.just(()),
        st.text(letters, max_size=9).map(lambda name: (("Sec-WebSocket-Protocol", name.replace("\n", "")),)),
    )
    return st.builds(
        lambda path, more: Request("GET", path, headers=(*rising, *more), leaves=1), st.sampled_from(paths), protocols
    )


def _strangers(known: Known) -> st.SearchStrategy[Request]:
    latin = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
    names = ("Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Cookie", "Authorization", "X-Forwarded-Host", "Accept",
             "Content-Type", "X-Forwarded-For", "X-Gradio-User", "X-Csm-Call", "Range", "Accept-Language", "Referer",
             "Content-Encoding", "Transfer-Coding", "If-Modified-Since", "Forwarded", "X-Forwarded-Proto")  # fmt: skip
    values = st.one_of(latin, st.sampled_from(["null", "http://evil.example", "cross-site", "navigate", "mcp", "0"]))
    headers = st.lists(st.tuples(st.sampled_from(names), values), max_size=5).map(tuple)
    paths = ("/", "/config", "/v1/models", "/v1/audio/speech", "/csm/view", "/gradio_api/info", "/gradio_api/mcp/")
    return st.builds(
        Request,
        st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PATCH", "TRACE", "GEThis"]),
        st.sampled_from(paths),
        st.sampled_from([b"", b"{}", b"null"]),
        headers,
    )
