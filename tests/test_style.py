"""Formatting, lint and types, in the same command as everything else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_the_tree_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_longer_than_450_lines():
    long = [f"{file}" for file in (TOP / "csm").rglob("*.py") if len(file.read_text().splitlines()) > 450]
    assert not long


def test_only_commands_print():
    """The rest warns, logs, or says it to whoever called."""
    printing = {file.stem for file in (TOP / "csm").rglob("*.py") if re.search(r"^\s*print\(", file.read_text(), re.M)}
    commands = {"cli", "evaluate", "lm_command", "amortisation", "run", "compiled", "measure", "command"}
    commands |= {"server", "talk"}  # of `csm bench`
    assert printing <= commands
