"""Training under `torchrun`: two processes on one node, or two nodes, which are network namespaces with a wire between
them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TOP = Path(__file__).parent.parent
FIRST, SECOND = "10.77.0.1", "10.77.0.2"
WIRE = (
    *("netns add {0}", "netns add {1}", "link add {0} type veth peer name {1}"),
    *("link set {0} netns {0}", "-n {0} addr add " + FIRST + "/24 dev {0}", "-n {0} link set {0} up"),
    *("link set {1} netns {1}", "-n {1} addr add " + SECOND + "/24 dev {1}", "-n {1} link set {1} up"),
    *("-n {0} link set lo up", "-n {1} link set lo up"),
)
# A `csm` that takes its node down with it in the sixth step.
DYING = """
import os, signal, sys
from csm.cli import main
from csm.training.run import Run

def log(run, **metrics):
    if run.step == 6:
        for process in (os.getppid(), os.getpid()):
            os.kill(process, signal.SIGKILL)

Run.log = log
sys.exit(main())
"""


@contextmanager
def two_nodes() -> Iterator[list[str]]:
    """The names of both, each also the name of its network device. Raises `OSError` where they can't be made."""
    names = [f"csm{os.getpid() % 10**6}{end}" for end in "ab"]
    try:
        for command in WIRE:
            _ip(command.format(*names))
        yield names
    finally:
        for name in names:
            with suppress(OSError):
                _ip(f"netns del {name}")  # and the wire with it


def _ip(command: str) -> None:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {command}: {done.stderr.strip()}")


def torchrun(options: Sequence, nodes: Sequence[str] = (), number: int = 0, program=("-m", "csm")) -> subprocess.Popen:
    """`csm train` with `options`, on one node with two processes or as one of two `nodes`."""
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", 2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    if nodes:
        command = ["ip", "netns", "exec", nodes[number], command[0], "--nnodes", 2, "--node-rank", number]
        command += ["--nproc-per-node", 1, "--master-addr", FIRST, "--master-port", 29500]
        environment["GLOO_SOCKET_IFNAME"] = nodes[number]
    command += [*program, "train", *options]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=TOP, env=environment, **streams)  # type: ignore[call-overload]


def ended(*processes: subprocess.Popen) -> None:
    """Wait for all of them; each must have done its work."""
    try:
        for process in processes:
            told = process.communicate(timeout=300)[1]
            assert process.returncode == 0, told
    finally:
        for process in processes:
            process.kill()
