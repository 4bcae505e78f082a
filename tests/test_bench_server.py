"""`csm bench --server`: what it counts is what clients hear, and it says so plainly when a server gives nothing."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from csm.bench import server
from csm.cli import main
from csm.errors import InputError


class Speaks(BaseHTTPRequestHandler):
    """One second of sound for whoever asks."""

    asked: ClassVar[list[dict]] = []
    status = 200

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()
        if self.status == 200:
            self.wfile.write(bytes(48_000))

    def log_message(self, *arguments):
        pass


@pytest.fixture
def port():
    Speaks.asked, Speaks.status = [], 200
    with ThreadingHTTPServer(("127.0.0.1", 0), Speaks) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield stub.server_address[1]
        stub.shutdown()


def test_clients_are_counted_by_what_they_hear(port, monkeypatch, capsys):
    @contextmanager
    def running(model, device):
        yield server.Running(port, 0)

    monkeypatch.setattr(server, "serving", running)
    assert main(["bench", "--server", "--clients", "1,3", "--rounds", "2"]) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    clients = json.loads(last)["server"]["clients"]
    assert list(clients) == ["1", "3"] and clients["1"]["times_one"] == 1.0
    for each in clients.values():
        assert each["sound_per_second"] > 0 and each["client_min"] <= each["client_median"]
        assert 0 < each["first_seconds_median"] <= each["first_seconds_p95"]
    assert len(Speaks.asked) == 1 + 3 + 2 * server.REQUESTS * (1 + 3)
    in_round = [asked["seed"] for asked in Speaks.asked if asked["seed"] >= 1_000]
    assert len(set(in_round)) == 2 * server.REQUESTS * 3  # in a round each client says something else


def test_an_answer_without_sound_is_one_sentence(port):
    Speaks.status = 503
    with pytest.raises(InputError, match="status 503 and no sound"):
        server.together(port, 2, 1, 0)


def test_a_server_that_does_not_start_is_one_sentence(monkeypatch):
    monkeypatch.setattr(server.sys, "executable", "false")
    with pytest.raises(InputError, match="ended before it answered"), server.serving("nano", "cpu"):
        pass


@pytest.mark.parametrize("wrong", [["--clients", "0"], ["--clients", "65"], ["--clients", ","], ["--rounds", "0"]])
def test_numbers_that_are_not_possible_are_refused_before_anything_starts(wrong, capsys):
    assert main(["bench", "--server", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
