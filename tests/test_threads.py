"""On a machine that others use, too: OpenMP's threads don't wait long for each other, and what the user set stands."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from csm.config import PRESETS
from csm.engine.threads import StepThreads
from csm.threads import BRIEF, SAID_BY_USERS, wait_briefly

TOP = Path(__file__).parent.parent
CPU = torch.device("cpu")

# What the environment says at the moment when torch, and with it OpenMP, is first looked for.
WHEN_TORCH_COMES = """
import os, sys

class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)  # the rest takes seconds

sys.meta_path.insert(0, Watch())
{door}
"""


def printed(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("door", ["import csm", "import csm.cli"])
def test_threads_wait_briefly_and_openmp_hears_so_in_time(door):
    assert printed(WHEN_TORCH_COMES.format(door=door)) == BRIEF["GOMP_SPINCOUNT"]


@pytest.mark.parametrize("name", SAID_BY_USERS)
def test_what_the_user_says_about_waiting_stands(name):
    environment = {name: "ACTIVE", "PATH": ""}
    wait_briefly(environment)
    assert environment == {name: "ACTIVE", "PATH": ""}


THREADS_IN_STEPS = """
import torch  # was there before csm
import csm
from csm.config import PRESETS
from csm.engine.threads import StepThreads

def in_steps():
    with StepThreads(PRESETS["nano"], torch.device("cpu")).few():
        return torch.get_num_threads()

of_itself = in_steps()
torch.set_num_threads(3)
print(of_itself, in_steps())
"""


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({}, "1 3"), ({"OMP_NUM_THREADS": "2"}, "2 3")],
    ids=["of itself and as torch was told", "as OpenMP was told"],
)
def test_nano_steps_with_one_thread_unless_the_user_chose(environment, threads):
    assert printed(THREADS_IN_STEPS, **environment) == threads


@pytest.fixture
def several(monkeypatch):
    """Two threads, as torch would have chosen them on a laptop."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("csm.engine.threads.AT_IMPORT", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def test_all_but_a_small_model_s_steps_has_all_threads(several):
    with StepThreads(PRESETS["nano"], CPU).few():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with StepThreads(PRESETS["tiny"], CPU).few():
        assert torch.get_num_threads() == 2


def test_a_thread_that_begins_while_another_steps_gets_its_own_back(several):
    threads, seen = StepThreads(PRESETS["nano"], CPU), []

    def speak():
        with threads.few():
            pass
        seen.append(torch.get_num_threads())

    with threads.few():
        beside = threading.Thread(target=speak)
        beside.start()
        beside.join()
    assert seen == [2] and torch.get_num_threads() == 2
