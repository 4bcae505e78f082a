"""`csm bench --load`: who comes, what counts as served well, and figures of a server that gives known sound."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import ClassVar

import pytest

from csm.bench.load import DIALOGUES, SOON, Served, arrivals, bench_load
from csm.bench.server import BYTES_A_SECOND
from csm.cli import main
from csm.errors import InputError


class Answers(BaseHTTPRequestHandler):
    """Half a second of sound at once and another after a moment; every third listener is turned away."""

    asked: ClassVar[list[tuple[str, dict]]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        full = body["seed"] % 3 == 2
        self.send_response(503 if full else 200)
        self.end_headers()
        for _ in range(0 if full else 2):
            self.wfile.write(bytes(BYTES_A_SECOND // 2))
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *_): ...


@contextmanager
def served():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_listeners_come_at_random_and_always_the_same_ones():
    coming = arrivals(5, 200)
    assert coming == arrivals(5, 200) != arrivals(5, 200, seed=8)
    assert len(coming) == pytest.approx(1000, rel=0.1) and all(0 < one.at < 200 for one in coming)
    gaps = sorted(later.at - one.at for one, later in pairwise(coming))
    assert gaps[len(gaps) // 2] == pytest.approx(0.693 / 5, rel=0.1), "the median of an exponential"
    assert sum(one.path.endswith("dialogue") for one in coming) / len(coming) == pytest.approx(DIALOGUES, abs=0.04)


def test_well_served_is_who_hears_soon_and_never_waits():
    assert Served("200", 4.0, SOON, SOON + 4.0).well
    assert not Served("200", 4.0, SOON + 0.1, 2.0).well
    assert not Served("200", 4.0, 0.1, 4.2).well
    assert not Served("503").well


def test_figures_of_a_server_that_gives_a_second_of_sound_to_two_of_three():
    with served() as url:
        found = bench_load(url, 20, 1)["load"]
    count = found["requests"]
    assert count == len(arrivals(20, 1)) and found["statuses"] == {"200": count - count // 3, "503": count // 3}
    assert found["sound_per_second"] * found["seconds"] == pytest.approx(count - count // 3, rel=0.02)
    assert found["first_seconds"]["p50"] < found["real_time_factor"]["p50"] and found["real_time_factor"]["p50"] >= 0.1
    assert {path for path, _ in Answers.asked} == {"/v1/audio/speech", "/v1/audio/dialogue"}


@pytest.mark.parametrize("url", ["127.0.0.1:7860", "http://", "http://127.0.0.1:seven", "ftp://127.0.0.1"])
def test_what_is_no_address_is_one_sentence(url, capsys):
    assert main(["bench", "--load", url]) == 2
    told = capsys.readouterr().err
    assert "is no address" in told and told.count("\n") == 1


def test_a_server_that_is_not_there_is_one_sentence():
    with served() as url:
        pass
    with pytest.raises(InputError, match=r"Nobody heard anything of .*no answer \(\d+\)"):
        bench_load(url, 20, 0.2)
