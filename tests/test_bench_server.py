"""`csm bench --server`: what it counts is what clients hear, and it says so plainly when a server gives nothing."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.request import Request, urlopen

import numpy as np
import pytest

from csm.bench import crowd, server, soak, talk
from csm.bench.crowd import Heard
from csm.cli import main
from csm.config import SAMPLE_RATE
from csm.errors import InputError


class Speaks(BaseHTTPRequestHandler):
    """One second of sound for whoever asks."""

    asked: ClassVar[list[dict]] = []
    status = 200

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.send_header("Retry-After", "7")
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


def test_the_questions_of_a_talk_are_sentences_without_the_silence_around_them():
    said = talk.questions()
    assert len(said) == 8 and all(1.5 < len(wave) / SAMPLE_RATE < 3.5 for wave in said)
    assert all(np.abs(part).max() > 0.02 for wave in said for part in (wave[: talk.WINDOW], wave[-talk.WINDOW :]))


def test_a_step_of_a_talk_took_what_passed_since_those_before_it(capsys):
    steps = dict(noticed=0.13, recognised=0.2, first_word=0.3, first_clause=0.3, first_sound_made=0.4, over=0.5)
    found = talk.figures_of([talk.Asked("one", 0.6, 0.1, steps | {"first_sound": 0.51}), talk.Asked("two", 0.8, None)])
    assert found["took"]["recognised"]["median"] == 0.07 and found["took"]["first_sound"]["median"] == 0.01
    assert found["first_sound_heard"]["median"] == 0.7 and found["stopped"]["count"] == 1
    shown = talk.talk_table({"talk": {"rounds": 2, "stub": found}})
    assert len(shown.splitlines()) == 3 + len(talk.STEPS) and " 500" in shown


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--clients", "0"], ["--soak", "0"], ["--clients", "65"], ["--clients", ","], ["--rounds", "0"]),
        ["--talk", "--rounds", "201"],
    ],
)
def test_numbers_that_are_not_possible_are_refused_before_anything_starts(wrong, capsys):
    assert main(["bench", *([] if "--soak" in wrong else ["--server"]), *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_in_a_crowd_who_leaves_has_heard_the_beginning_and_who_hears_another_s_is_found():
    sound = np.random.default_rng(0).integers(-9_000, 9_000, 5_000).astype(np.int16)
    alone, rounded = Heard(sound, None, 0.1, False), sound + 1
    for same in (Heard(sound, None, 0.1, False), Heard(rounded, None, 0.1, False), Heard(sound[:700], None, 0.1, True)):
        assert soak.differs(same, alone) is None
    for other in (Heard(sound[::-1], None, 0.1, False), Heard(sound[1:701], None, 0.1, True)):
        assert "off by" in soak.differs(other, alone)
    assert "samples" in soak.differs(Heard(sound[:700], None, 0.1, False), alone)
    words = Heard(None, "Good morning.", 0.1, False)
    assert soak.differs(Heard(None, "Good", 0.1, True), words) is None
    assert soak.differs(Heard(None, "Seven", 0.1, True), words) and soak.differs(Heard(None, "Good", 0.1, False), words)


def test_a_program_of_the_crowd_hears_leaves_and_is_sent_away(port):
    assert len(crowd.program(port, 2, "one").sound) == 24_000 and Speaks.asked[-1]["input"] == crowd.TEXTS[2]
    Speaks.status = 503
    with pytest.raises(crowd.Away) as away:
        crowd.program(port, 2, "one")
    assert (away.value.seconds, away.value.as_told) == (7.0, True)
    with socket.socket() as silent:  # takes the connection and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert crowd.program(silent.getsockname()[1], 2, "one", 0.05).left


def test_the_crowd_s_language_model_says_the_text_that_was_asked_for():
    with crowd.LanguageModel() as model:
        asked = {"messages": [{"role": "user", "content": "Text 3, please."}]}
        request = Request(f"{model.environment()['CSM_LLM_URL']}/chat/completions", json.dumps(asked).encode())
        with urlopen(request, timeout=30) as answer:
            lines = [line[6:] for line in answer.read().decode().split("\n\n") if "choices" in line]
    assert "".join(json.loads(line)["choices"][0]["delta"]["content"] for line in lines) == crowd.TEXTS[3]
