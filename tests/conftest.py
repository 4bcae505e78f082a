"""Fixtures that several files of tests share: the app itself, running as a user starts it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # files run side by side: more threads than cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and for what the tests start
from tests.serving import free_port

TOP = Path(__file__).parent.parent
LONGEST_START = 120  # seconds; a warm machine needs a tenth of it, but tests also run on busy ones
os.environ.setdefault("CSM_LISTEN", "0")  # the recogniser hears the turns of those tests that ask for it
QUICK = set(
    "access audio average codec conversation cues encoding files foreign info layers manifest model muon project "
    "scripts settings slots spoken utterance waiting".split()
)
# The files that take longest come first: one of them alone at the end would leave a core idle.
LONG = (
    "browser kernels lm_scale mimi_training style window readme lm_training finetune uploads batching install cli "
    "generator doors session web layouts openai training packed hub listening"
).split()


@dataclass(frozen=True)
class RunningApp:
    """`url` of a `python app.py`, how many seconds it took to answer, and where its output goes."""

    url: str
    seconds: float
    log: Path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of speech without sound, for training language models."""
    from tests.letters import write_speech

    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def talk(speech: Path):
    """Training conversations out of `speech`."""
    from csm.text import ByteTokenizer
    from csm.training.codes import Conversations
    from csm.training.corpus import Corpus
    from tests.letters import CONFIG

    return Conversations(Corpus(speech), speech, ByteTokenizer(), CONFIG)


@pytest.fixture(scope="module")
def generator():
    """A small random model with room for a conversation."""
    from tests.small import small_generator

    return small_generator(max_positions=600)


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """`python app.py` on a free port, with the embedded model, ended after the last test."""
    folder = tmp_path_factory.mktemp("app")
    log = folder / "log.txt"
    port = free_port()
    changed = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "CSM_MODEL": "nano",
        "CSM_DEVICE": "cpu",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    url = f"http://127.0.0.1:{port}/"
    started = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=TOP, env=os.environ | changed, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() - started > LONGEST_START:
                pytest.fail(f"The app did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        yield RunningApp(url, time.monotonic() - started, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def playwright():
    """Playwright itself, for tests that start a browser of their own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    """Chromium, for the tests that open the page in it."""
    from tests.browser import CHROMIUM, FLAGS

    with playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        yield browser


@pytest.fixture(scope="module")
def reference():
    """A small random model of transformers' own."""
    from tests.published import small_reference  # here, because transformers takes seconds to import

    return small_reference()


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory) -> Path:
    """The reference as transformers writes it."""
    from tests.published import write_transformers

    return write_transformers(tmp_path_factory.mktemp("model") / "transformers", reference)


@pytest.fixture(scope="module")
def original(folder, tmp_path_factory) -> Path:
    """The same weights in the original layout."""
    from tests.published import write_original

    return write_original(folder, tmp_path_factory.mktemp("model") / "original")


def pytest_configure(config: pytest.Config) -> None:
    """Workers get the files in the order of `pytest_collection_modifyitems`, not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests are quick have the marker `quick`: small models, no app, no browser, no trained weights."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem.removeprefix("test_"), len(LONG)))  # stable within files
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK:
            item.add_marker(pytest.mark.quick)
