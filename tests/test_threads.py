"""On a machine that others use, too: OpenMP's threads don't wait long for each other, and what the user set stands."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from csm.config import PRESETS, Environment
from csm.engine.threads import StepThreads
from csm.errors import InputError
from csm.speech.batching import shared
from csm.threads import BRIEF, SAID_BY_USERS, cores_allowed, usual_threads, wait_briefly
from tests.small import small_generator

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
    said = "OMP_", "GOMP_", "KMP_", "CSM_THREADS"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(said)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("door", ["import csm; csm.load", "import csm.engine", "import csm.cli; import csm.model"])
def test_threads_wait_briefly_and_openmp_hears_so_in_time(door):
    assert printed(WHEN_TORCH_COMES.format(door=door)) == BRIEF["GOMP_SPINCOUNT"]


@pytest.mark.parametrize("name", SAID_BY_USERS)
def test_what_the_user_says_about_waiting_stands(name):
    environment = {name: "ACTIVE", "PATH": ""}
    wait_briefly(environment)
    assert environment == {name: "ACTIVE", "PATH": ""}


# Containers as the kernel shows them: files below the root, the processors it may run on, and the cores that makes.
V2 = "30 20 0:26 {} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw"
V1 = (
    "33 31 0:30 /docker/7a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 /docker/7a /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
)
CONTAINERS = {
    "no cgroups": ({}, 8, 8),
    "no limit": ({"proc/self/mountinfo": V2.format("/"), "sys/fs/cgroup/cpu.max": "max 100000"}, 8, 8),
    "two and a half cores": ({"proc/self/mountinfo": V2.format("/"), "sys/fs/cgroup/cpu.max": "250000 100000"}, 8, 2),
    "half a core": ({"proc/self/mountinfo": V2.format("/"), "sys/fs/cgroup/cpu.max": "50000 100000"}, 8, 1),
    "a cpuset": ({"proc/self/mountinfo": V2.format("/"), "sys/fs/cgroup/cpuset.cpus.effective": "1-2,5\n"}, 8, 3),
    "a limit on the slice above": (
        {
            "proc/self/cgroup": "0::/user.slice/run.scope\n",
            "proc/self/mountinfo": V2.format("/"),
            "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
            "sys/fs/cgroup/user.slice/run.scope/cpu.max": "max 100000",
        },
        8,
        3,
    ),
    "a namespace that is not ours": (
        {
            "proc/self/cgroup": "0::/../other\n",
            "proc/self/mountinfo": V2.format("/"),
            "sys/fs/cgroup/cpu.max": "200000 100000",
        },
        8,
        2,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "3:cpuset:/docker/7a\n2:cpu,cpuacct:/docker/7a\n0::/\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "0-5",
        },
        8,
        4,
    ),
    "version 1 without a limit": (
        {
            "proc/self/cgroup": "2:cpu,cpuacct:/docker/7a\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        8,
        8,
    ),
    "two hyperthreads a core": (
        {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)},
        8,
        4,
    ),
    "nothing that can be read": (
        {"proc/self/mountinfo": "what is this", "proc/self/cgroup": "odd", "sys/fs/cgroup/cpu.max": "many"},
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_no_more_threads_than_cores_that_a_container_may_use(tmp_path, name):
    files, processors, cores = CONTAINERS[name]
    for place, text in files.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    assert cores_allowed(tmp_path, frozenset(range(processors))) == cores


def test_what_the_user_says_about_threads_stands(monkeypatch):
    monkeypatch.setattr("csm.threads.cores_allowed", lambda: 2)
    assert [usual_threads({}, torchs) for torchs in (1, 2, 8)] == [1, 2, 2]
    assert usual_threads({"CSM_THREADS": "5"}, 2) == 5
    assert usual_threads({"CSM_THREADS": "5", "OMP_NUM_THREADS": "8"}, 8) == 8
    assert usual_threads({"CSM_THREADS": "many"}, 8) == 2
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CSM_THREADS", "5")
    assert Environment.read().threads == "5"
    monkeypatch.setenv("CSM_THREADS", "many")
    with pytest.raises(InputError, match="CSM_THREADS can't be many; choose a whole number from 1 to 1024"):
        Environment.read()


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
    [({}, "1 3"), ({"CSM_THREADS": "4"}, "4 3")],
    ids=["of itself and as torch was told", "as we were told"],
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


def test_nano_steps_with_as_many_threads_as_openmp_was_told(several, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with StepThreads(PRESETS["nano"], CPU).few():
        assert torch.get_num_threads() == 2


def test_where_graphs_have_threads_of_their_own_torch_takes_one_beside_them(several, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with StepThreads(PRESETS["tiny"], CPU, in_graphs=True).few():
        assert torch.get_num_threads() == 1
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


def test_a_thread_that_begins_while_another_decodes_reads_with_all(several):
    threads, seen = StepThreads(PRESETS["tiny"], CPU), []

    def read():
        seen.append(torch.get_num_threads())
        with threads.few():
            seen.append(torch.get_num_threads())

    with threads.one():
        beside = threading.Thread(target=read)
        beside.start()
        beside.join()
    assert seen == [1, 2] and torch.get_num_threads() == 2


def test_sound_that_is_made_beside_the_steps_of_several_takes_one_thread(several):
    generator = small_generator()
    with generator.engine.decoding():
        assert torch.get_num_threads() == 2
    with shared(generator, 2).engine.decoding():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
