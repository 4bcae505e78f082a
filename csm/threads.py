"""How threads wait for each other, and how many there may be: what is said before torch loads OpenMP, and what the
machine gives.

Beside the way from script to sound. OpenMP's threads spin while they wait, for milliseconds; where another program has
the core that they wait for, all of that time is lost, at each of a frame's hundred products. Sleeping at once costs a
quiet machine as much as the second thread gains. What the user has set stands. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path, PurePosixPath

# GNU's runtime, which torch's wheels for Linux bring, counts turns of its loop: about a tenth of a millisecond. LLVM's
# and Intel's count milliseconds.
BRIEF = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
SAID_BY_USERS = ("OMP_WAIT_POLICY", *BRIEF)
OPENMP, OURS = "OMP_NUM_THREADS", "CSM_THREADS"
MOST_THREADS = 1024


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Put the policy into `environment`, unless it has one. Of no use once torch is imported: OpenMP reads it then."""
    if not any(name in environment for name in SAID_BY_USERS):
        environment.update(BRIEF)


def usual_threads(environment: Mapping[str, str], torchs: int) -> int:
    """How many threads to take where torch takes `torchs` by itself: as many as CSM_THREADS says, else no more than
    cores may be used. What OMP_NUM_THREADS says stands, and a CSM_THREADS that is no number counts for nothing."""
    if environment.get(OPENMP):
        return torchs
    return threads_said(environment.get(OURS) or "") or min(torchs, cores_allowed())


def threads_said(text: str) -> int | None:
    """What CSM_THREADS says; None for anything but a number that can be."""
    return int(text) if text.isdecimal() and 1 <= int(text) <= MOST_THREADS else None


def cores_allowed(root: Path = Path("/"), logical: frozenset[int] | None = None) -> int:
    """Cores that this process may use at once, at least 1: those of the `logical` processors it may run on (default:
    what the system says), two hyperthreads of a core being one, and no more of them than its cgroups' CPU time fills.

    `root` is where /proc and /sys are."""
    if logical is None:
        logical = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
        logical = logical or frozenset(range(os.cpu_count() or 1))
    for controller, names in (("", ["cpuset.cpus.effective"]), ("cpuset", ["cpuset.effective_cpus", "cpuset.cpus"])):
        own = next(_cgroups(root, controller), None)
        said = [numbers for name in names if own and (numbers := _range(_text(own / name)))]
        logical = (logical & said[0] if said else logical) or logical
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_text(root / siblings.format(number)) or str(number) for number in logical})
    quotas = [quota for group in _cgroups(root, "") if (quota := _quota(_text(group / "cpu.max")))]
    for group in _cgroups(root, "cpu"):
        text = f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        quotas += [quota] if (quota := _quota(text)) else []
    return max(1, min(cores, *map(int, quotas))) if quotas else cores


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup, and those it lies in, as folders: of version 1's `controller`, or of version 2 ("")."""
    own = ""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = (*line.split(":", 2), "", "")[:3]
        own = path if controller in names.split(",") else own
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, behind = line.partition(" - ")
        place, kind = before.split()[3:5], behind.split()
        if len(place) < 2 or len(kind) < 3:
            continue
        if kind[0] != ("cgroup" if controller else "cgroup2") or (controller and controller not in kind[2].split(",")):
            continue
        mounted, group = root / place[1].lstrip("/"), PurePosixPath(own)
        inside = group.relative_to(place[0]) if group.is_relative_to(place[0]) else PurePosixPath()
        if ".." in inside.parts:  # seen from a namespace that it is not in
            inside = PurePosixPath()
        yield from (mounted / part for part in (inside, *inside.parents))
        return


def _quota(text: str) -> float | None:
    """`quota period` -> cores; None where there is no limit."""
    quota, period = (*text.split(), "", "")[:2]
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _range(text: str) -> frozenset[int]:
    """`0-3,8` -> its numbers; none for anything else."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return frozenset()
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
