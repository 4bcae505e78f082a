"""A cluster for real: replicas of `nano` under Ray, one of which is killed, and others have something wrong."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from csm.web.cluster.register import NEW_SECONDS
from tests.serving import ALONE, TOP, free_port, serving, wait_for

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
TEXT = "It was raining all morning, and now the sun is out, which is nice."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with the weights, which every replica reads when it starts."""
    return shutil.copytree(TOP / "csm/assets/nano", tmp_path_factory.mktemp("model") / "nano")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where replicas keep files."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def cluster(model, files):
    """Three replicas, each with a slot."""
    options = ("--model", str(model), "--replicas", "3", "--cores", "0.5")
    with serving(*options, CSM_SLOTS="1", GRADIO_TEMP_DIR=str(files)) as running:
        running.wait_for_ready(3)
        yield running


def begun(cluster, seeds):
    """Listeners who have begun to ask, and what they will have heard."""
    heard: dict[int, str] = {}
    threads = [threading.Thread(target=lambda n: heard.update({n: cluster.speak(n, TEXT)}), args=(n,)) for n in seeds]
    for thread in threads:
        thread.start()
    return threads, heard


def test_one_of_three_replicas_may_be_killed(cluster):
    first = cluster.wait_for_ready(3)
    whole = {seed: cluster.speak(seed, TEXT) for seed in range(6)}
    assert all(told.startswith("200") for told in whole.values())

    listeners, heard = begun(cluster, whole)
    cluster.wait(lambda: cluster.web.get("/health").json()["speaking"] == 3)
    cluster.processes("ServeReplica")[0].kill()
    assert cluster.speak(0, TEXT) == whole[0], "who asks after that notices nothing"
    for one in listeners:
        one.join()
    cut = {seed for seed in whole if heard[seed] != whole[seed]}
    assert len(cut) <= 1 and all(heard[seed] == "broken off" for seed in cut), heard

    second = cluster.wait(lambda: len(now := cluster.named("ready")) == 3 and set(now) != set(first) and now)
    assert len(set(first) & set(second)) == 2, "another has come"
    assert {seed: cluster.speak(seed, TEXT) for seed in whole} == whole
    figures = cluster.web.get("/metrics").text
    assert all(f'csm_jobs_total{{outcome="done",replica="{id}"}}' in figures for id in second)


def test_the_register_may_be_killed(cluster):
    cluster.wait_for_ready(3)
    [register] = cluster.processes("Register")
    register.kill()
    assert cluster.speak(1, TEXT).startswith("200")
    cluster.wait(lambda: any(one.pid != register.pid for one in cluster.processes("Register")))
    until = time.monotonic() + 2 * NEW_SECONDS
    while time.monotonic() < until:
        assert len(cluster.named("ready")) == 3, "nobody has gone"
        time.sleep(0.1)


@contextmanager
def small_disk(folder: Path):
    """`folder` on a disk of its own that is too small."""
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder]).returncode:
        pytest.skip("a disk is mounted as root")
    try:
        for name in ("uploads", "pages", "voices"):
            (folder / name).mkdir()
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def change(model: Path):
    """Make the weights in that folder a little larger."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            about = file.metadata()
        larger = {name: t * 1.01 if t.is_floating_point() else t for name, t in load_file(path).items()}
        save_file(larger, path, metadata=about)


def told_of(cluster, part) -> None:
    """Wait until a replica's trouble has `part` in it and `csm serve` has told of it, too, in one line."""
    [trouble] = cluster.wait(lambda: [o["trouble"] for o in cluster.replicas() if part in o["trouble"]])
    cluster.wait(lambda: any(trouble in line for line in cluster.told))
    assert trouble.endswith(".") and "Traceback" not in "".join(cluster.told)


def test_what_is_wrong_with_a_replica_is_named_and_the_rest_serves_on(cluster, model, files):
    cluster.wait_for_ready(3)
    with small_disk(next(files.glob("csm-app-*"))):
        told_of(cluster, "The disk of this replica is full")
        assert all(cluster.speak(seed, TEXT).startswith("200") for seed in range(3))
    cluster.wait(lambda: not any(one["trouble"] for one in cluster.replicas()))

    change(model)
    cluster.processes("ServeReplica")[0].kill()
    told_of(cluster, "and the others run")
    assert all(cluster.speak(seed, TEXT).startswith("200") for seed in range(3))

    shutil.rmtree(model)
    cluster.processes("ServeReplica")[0].kill()
    told_of(cluster, "There is no model")
    assert all(cluster.speak(seed, TEXT).startswith("200") for seed in range(3))
    assert "There is no model" in cluster.web.get("/cluster").text


def test_a_stop_leaves_nothing_behind(cluster):
    import psutil  # Ray brings it

    started = cluster.processes("")
    cluster.end()
    assert not psutil.wait_procs(started, timeout=10)[1]


def test_it_speaks_behind_serves_own_proxy_too(tmp_path):
    port = free_port()
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"{{proxy_location: HeadOnly, http_options: {{host: 127.0.0.1, port: {port}}}, applications: [{{name: csm, "
        "route_prefix: /, import_path: 'csm.web.cluster:app', args: {replicas: '1', cores: '0.5'}}]}"
    )
    command = [Path(sys.executable).with_name("serve"), "run", config]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **ALONE}, **quiet)
    web = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)
    try:
        wait_for(lambda: ready(web), process)
        answer = web.post("/v1/audio/speech", json={"input": TEXT, "voice": "alloy", "response_format": "pcm"})
        assert answer.status_code == 200 and len(answer.content) > 48_000
        assert [one["state"] for one in web.get("/health").json()["replicas"]] == ["ready"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def ready(web: httpx.Client) -> bool:
    """Whether Serve's proxy is there and a replica behind it takes requests."""
    try:
        return web.get("/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
