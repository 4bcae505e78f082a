"""A short campaign of odd requests at every door; `python -m tests.campaign` sends as many as are wanted."""

import subprocess
import sys

import pytest

pytest.importorskip("hypothesis", reason="Hypothesis is not installed: pip install hypothesis")


def test_a_hundred_odd_requests_find_no_fault_at_any_door():
    command = [sys.executable, "-m", "tests.campaign", "--cases", "100", "--seed", "1", "--patience", "120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
