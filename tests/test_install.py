"""The wheel, used as whoever types `pip install` uses it: in a fresh environment, from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PACKED = ("csm", "prompts", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because setuptools leaves a folder `build` whose old files a later wheel would have."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z", *PACKED], cwd=TOP, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, source / name)
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(made), "."]
    subprocess.run([sys.executable, *build], cwd=source, check=True)
    (found,) = made.iterdir()
    return found


def test_the_wheel_has_the_model_the_voices_and_the_page_and_nothing_of_the_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("prompts", "csm/assets/prompts"), ("csm/web/page", "csm/web/page")):
        assert {f"{inside}/{file.name}" for file in (TOP / folder).iterdir() if file.is_file()} <= names
    assert any(name.startswith("csm/assets/nano/") and name.endswith(".safetensors") for name in names)
    assert {name.split("/")[0] for name in names} == {
        "csm",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }


@pytest.mark.skipif(os.name == "nt" or not shutil.which("curl"), reason="the script is bash and asks with curl")
def test_the_installed_command_lists_voices_speaks_and_serves_from_an_empty_folder(wheel, tmp_path):
    fresh = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
    python = fresh / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True)
    # What csm needs is taken from where the tests run; a path alone, so that no editable csm comes with it.
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = Path(subprocess.check_output(ask, text=True).strip())
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CSM_"))}
    done = subprocess.run(["bash", str(TOP / ".ci" / "smoke"), python], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
