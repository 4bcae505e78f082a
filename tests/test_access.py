"""Who may come in: by which name, from which site, with which key; what every answer says about itself."""

import asyncio
import os
import secrets

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from csm.config import Environment
from csm.conversation.studio import Studio
from csm.conversation.waiting import Queue, QueueFull
from csm.errors import InputError
from csm.limits import LONGEST_BODY, MOST_ASKED
from csm.web import pages as rooms
from csm.web.access import COOKIE, Access
from csm.web.asked import FAILED, Told, read_json
from csm.web.doors import Doors, answer_failure
from csm.web.place import PREFIX, Place
from csm.web.routes import PageRoutes
from tests.small import end_after, small_generator
from tests.test_pages import Visitor

BROKEN = ["/v1/x", "/csm/x", "/gradio_api/x", "/gradio_api/mcp/x"]
KEY = {"authorization": "Bearer open-sesame"}


def headers(host="127.0.0.1:7860", **more):
    return {"host": host, **{name.replace("_", "-"): value for name, value in more.items()}}


def status(access, path="/", method="GET", from_here=True, **given):
    refused = access.refused(method, path, headers(**given), from_here)
    return refused.status if refused else 200


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:1", "LOCALHOST", "[::1]:7860", "a.gradio.live"])
def test_this_machine_s_names_and_those_of_share_are_known(host):
    assert status(Access(), host=host) == 200


@pytest.mark.parametrize("host", ["evil.example:7860", "", "10.0.0.1", "localhost.evil.example"])
def test_any_other_name_is_refused_so_that_no_site_can_take_the_server_s_place(host):
    assert status(Access(), host=host) == 403


@pytest.mark.parametrize("host", ["ehà3¶", "a b", "http://a", "a/b", "[::1"])
def test_what_a_proxy_says_that_is_no_name_is_refused_before_addresses_are_made_of_it(host):
    assert status(Access(), x_forwarded_host=host.encode().decode("latin-1")) == 400
    assert status(Access(), x_forwarded_host="talk.example:443, [::1]:80") == 200


def test_the_names_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("CSM_HOSTS", "talk.example, other.example")
    monkeypatch.setenv("CSM_ORIGINS", "https://site.example/")
    monkeypatch.setenv("SPACE_HOST", "me-csm.hf.space")
    access = Access.of(Environment.read())
    for host in ("talk.example", "Other.Example:443", "me-csm.hf.space"):
        assert status(access, host=host) == 200
    assert status(access, "/v1/models", origin="https://site.example") == 200
    assert status(access, "/v1/models", origin="https://evil.example") == 403


def test_who_listens_everywhere_is_asked_by_any_address_but_by_no_foreign_name():
    access = Access.of(Environment.read(), "0.0.0.0")
    assert status(access, host="192.168.1.7:7860") == 200 and status(access, host="evil.example") == 403
    assert status(Access(), host="192.168.1.7:7860") == 403


def test_other_sites_may_link_here_and_ask_for_nothing():
    access = Access()
    assert status(access, "/csm/plan", "POST", origin="https://evil.example") == 403
    assert status(access, "/csm/plan", "POST", origin="null") == 403
    assert status(access, "/csm/plan", "POST", origin="http://localhost:3000") == 403
    assert status(access, "/csm/plan", "POST", origin="http://127.0.0.1:7860") == 200
    assert status(access, "/v1/models", sec_fetch_site="cross-site") == 403
    assert status(access, "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200


DOORS = ["/v1/models", "/gradio_api/call/generate", "/gradio_api/queue/join", "/gradio_api/mcp/", "/csm/plan", "/x"]


@pytest.mark.parametrize("path", DOORS)
def test_with_a_key_programs_need_it_on_every_door(path):
    access = Access(key="open-sesame")
    assert status(access, path, "POST") == 401
    assert status(access, path, "POST", authorization="Bearer open-sesam") == 401
    assert status(access, path, "POST", **KEY) == 200
    assert "open-sesame" not in repr(access)


def test_with_a_key_the_page_works_by_a_cookie_of_its_own_that_opens_no_door_of_programs():
    access = Access(key="open-sesame")
    assert status(access, "/") == 200
    cookie = access.cookie().split(";")[0]
    assert "HttpOnly" in access.cookie() and "SameSite=Strict" in access.cookie()
    assert status(access, "/csm/plan", "POST", cookie=cookie) == 200
    assert status(access, "/gradio_api/queue/join", "POST", cookie=f"a=b; {cookie}") == 200
    for path in ("/v1/models", "/gradio_api/call/generate", "/gradio_api/mcp/"):
        assert status(access, path, "POST", cookie=cookie) == 401
    assert status(access, "/csm/plan", "POST", cookie=f"{COOKIE}={'0' * 24}.{'0' * 64}") == 401
    assert status(Access(key="open-sesame"), "/csm/plan", "POST", cookie=cookie) == 200, "after a restart"
    assert Access().cookie() is None


def asked(app, method, path, **more):
    async def ask():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


async def broken(request):
    raise ZeroDivisionError("secret insides of /srv/csm")


async def echo(request):
    return Told(await read_json(request, LONGEST_BODY))


def doors(access=None, **more):
    routes = [
        Route(path, broken, methods=["POST"]) for path in ("/v1/x", "/csm/x", "/gradio_api/x", "/gradio_api/mcp/x")
    ]
    routes += [Route(path, echo, methods=["POST"]) for path in ("/echo", "/v1/audio/voices")]
    routes += [Route("/", lambda request: PlainTextResponse("Hello."))]
    routes.append(Route("/cors", lambda request: JSONResponse({}, headers={"Access-Control-Allow-Origin": "*"})))
    return Doors(Starlette(routes=routes, exception_handlers={Exception: answer_failure}), access or Access(), **more)


@pytest.mark.parametrize("path", BROKEN)
def test_an_exception_that_nobody_knows_is_one_sentence_in_the_shape_of_its_door(path):
    answer = asked(doors(), "POST", path)
    told = answer.json()
    sentence = told["error"] if isinstance(told["error"], str) else told["error"]["message"]
    assert answer.status_code == 500 and sentence == FAILED
    assert "insides" not in answer.text and "/srv" not in answer.text and "Traceback" not in answer.text


def test_every_answer_says_what_a_browser_may_do_with_it():
    answer = asked(doors(), "GET", "/")
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "object-src 'none'" in policy and "frame-ancestors 'self'" in policy
    assert "access-control-allow-origin" not in asked(doors(), "GET", "/cors").headers
    listed = doors(Access(origins=frozenset({"https://site.example"})))
    for method in ("GET", "OPTIONS"):
        answer = asked(listed, method, "/cors", headers={"Origin": "https://site.example"})
        assert answer.headers["access-control-allow-origin"] == "https://site.example"


@pytest.mark.parametrize("sent", [b'"%s"' % (b"a" * (LONGEST_BODY + 1)), (b"a" * 100_000 for _ in range(20))])
def test_more_than_a_body_may_have_is_not_read(sent):
    answer = asked(doors(), "POST", "/echo", content=sent if isinstance(sent, bytes) else chunks(sent))
    assert answer.status_code == 413 and "send less" in answer.json()["detail"]


def test_more_values_than_json_may_have_are_not_read():
    many = b"[" + b"1," * MOST_ASKED + b"1]"
    assert len(many) < LONGEST_BODY and asked(doors(), "POST", "/echo", content=many).status_code == 413
    assert asked(doors(), "POST", "/v1/audio/voices", content=many).status_code == 200, "in a file they are none"


async def chunks(parts):
    for part in parts:
        yield part


def test_a_full_disk_takes_no_more_files():
    answer = asked(doors(room=lambda: False), "POST", "/gradio_api/upload", content=b"x")
    assert answer.status_code == 507 and "hour" in answer.json()["detail"]


def test_halves_of_letters_and_numbers_that_are_none_break_no_answer():
    assert asked(doors(), "POST", "/echo", content=rb'{"a\ud800": ["\udfff", 1]}').json() == {"a\ufffd": ["\ufffd", 1]}
    assert Told({"a": float("nan"), "b": "\ud800"}).body == b'{"a":null,"b":"\\ud800"}'
    for odd in (b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000):
        assert asked(doors(), "POST", "/echo", content=odd).status_code == 400


def test_what_a_dead_server_left_goes_when_the_next_starts(tmp_path):
    left, alive = tmp_path / f"{PREFIX}dead", Place.taken(tmp_path)
    (left / "pages").mkdir(parents=True)
    (left / "running").touch()
    after = Place.taken(tmp_path)
    assert not left.exists() and alive.folder.exists() and after.folder.exists()
    after.close()
    assert not after.folder.exists()
    alive.close()


def test_what_is_older_than_its_hour_goes_by_the_clock(tmp_path):
    place = Place.taken(tmp_path)
    for name, age in (("old", 4_000), ("new", 10)):
        (place.uploads / name).mkdir()
        file = place.uploads / name / "sound.wav"
        file.write_bytes(b"RIFF")
        now = file.stat().st_mtime
        for path in (file, file.parent):
            os.utime(path, (now - age, now - age))
    place.tidy()
    assert [path.name for path in place.uploads.rglob("*.wav")] == ["sound.wav"]
    assert (place.uploads / "new" / "sound.wav").exists()
    place.close()


def test_whoever_comes_again_as_told_gets_in_before_those_who_come_by_themselves(monkeypatch):
    now = 0.0
    monkeypatch.setattr("csm.conversation.waiting.time.monotonic", lambda: now)
    queue = Queue(longest=2)
    places = [queue.join(10.0), queue.join(10.0)]
    told = {}
    for name in ("anna", "ben"):
        with pytest.raises(QueueFull) as full:
            queue.join(5.0, name)
        told[name] = full.value.seconds
    assert told["anna"] == pytest.approx(20) and told["ben"] == pytest.approx(25), "each its own time"
    now = 12.0
    places[0].leave()
    with pytest.raises(QueueFull):
        queue.join(5.0, "newcomer")
    now = 20.0
    places[1].leave()
    anna = queue.join(5.0, "anna")
    assert anna.served
    now = 25.0
    anna.leave()
    assert queue.join(5.0, "ben").served


def test_pages_on_which_nothing_was_spoken_make_room_and_the_others_stay(monkeypatch):
    generator = small_generator(max_positions=2048)
    end_after(generator, 2)
    pages = rooms.Pages(Studio(generator))
    client = TestClient(Starlette(routes=PageRoutes(pages).routes()))
    monkeypatch.setattr(rooms, "MOST_PAGES", 3)
    spoken = [Visitor(client, "A: One.") for _ in range(2)]
    for visitor in spoken:
        visitor.speak()
    for _ in range(5):
        Visitor(client).plan()
    assert client.post("/csm/view", json={"token": secrets.token_hex(16)}).json()["turns"] == []
    assert len(pages._pages) == 3
    assert all(visitor.ask("view").json()["turns"][0]["state"] == "ended" for visitor in spoken)
    Visitor(client, "A: One.").speak()
    refused = Visitor(client).ask("plan")
    assert refused.status_code == 400 and "Too many pages" in refused.json()["error"]
    with pytest.raises(InputError, match="no longer has"):
        pages.page(secrets.token_hex(16), new=False)
