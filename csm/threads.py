"""How threads wait for each other, said before torch loads OpenMP: briefly, so that a busy machine is not waited out.

Beside the way from script to sound. OpenMP's threads spin while they wait, for milliseconds; where another program has
the core that they wait for, all of that time is lost, at each of a frame's hundred products. Sleeping at once costs a
quiet machine as much as the second thread gains. What the user has set stands. No torch.
"""

from __future__ import annotations

from collections.abc import MutableMapping

# GNU's runtime, which torch's wheels for Linux bring, counts turns of its loop: about a tenth of a millisecond. LLVM's
# and Intel's count milliseconds.
BRIEF = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
SAID_BY_USERS = ("OMP_WAIT_POLICY", *BRIEF)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Put the policy into `environment`, unless it has one. Of no use once torch is imported: OpenMP reads it then."""
    if not any(name in environment for name in SAID_BY_USERS):
        environment.update(BRIEF)
