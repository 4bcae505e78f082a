"""What the README shows works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import ROWS

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()
FRONT = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippet = next(block for block in blocks("python") if "import csm" in block)
    exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "turn.wav").stat().st_size > 10_000


def test_the_command_line_snippet_runs(tmp_path):
    (block,) = blocks("bash")
    done = subprocess.run(
        ["bash", "-euc", block.replace("python -m csm", f"{shlex.quote(sys.executable)} -m csm")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(TOP), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "yes (confidence" in done.stdout
    assert (tmp_path / "conversation.wav").exists() and (tmp_path / "report.json").exists()


def test_the_client_snippet_runs(app, capsys):
    snippet = next(block for block in blocks("python") if "gradio_client" in block)
    assert "http://127.0.0.1:7860" in snippet
    exec(compile(snippet.replace("http://127.0.0.1:7860", app.url), "README.md", "exec"), {})
    assert ".wav" in capsys.readouterr().out


def commands(file: Path) -> list[str]:
    """What stands after `-m csm` in each indented line of a file, comments left out."""
    lines = [part for line in re.findall(r"^    (.+)$", file.read_text(), re.MULTILINE) for part in line.split("&&")]
    return [line.split(" -m csm ", 1)[1] for line in lines if " -m csm " in line and "…" not in line]


RECIPE = TOP / "csm" / "training" / "README.md"
COMMANDS = [(file.name, command) for file in (TOP / "README.md", RECIPE) for command in commands(file)]


@pytest.mark.parametrize(("file", "command"), COMMANDS, ids=lambda value: value[:60])
def test_every_command_is_one_that_the_program_knows(file, command):
    """As far as that shows without running it: names, options and choices."""
    from csm.cli import _parser

    _parser().parse_args(shlex.split(command, comments=True))


def test_the_recipe_s_commands_are_found():
    steps = {command.split()[1] for command in commands(RECIPE) if command.startswith("train ")}
    assert steps >= {"data", "codec", "codes", "lm", "amortisation", "export", "prompts"}


def test_ci_runs_exactly_the_test_command():
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (TOP / ".ci" / "run").read_text().splitlines()


def test_the_space_s_front_matter_fits_the_requirements():
    requirements = (TOP / "requirements.txt").read_text()
    assert f"gradio=={FRONT['sdk_version']}" in requirements
    assert FRONT["sdk"] == "gradio" and (TOP / FRONT["app_file"]).is_file()
    assert len(FRONT["short_description"]) <= 60
    assert FRONT["python_version"] in ("3.10.13", "3.12.12")  # what ZeroGPU takes


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "medium"])
def test_the_sizes_table_is_true(name):
    from csm.config import PRESETS
    from csm.model.size import parameter_counts

    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
    total, config = parameter_counts(PRESETS[name])["total"], PRESETS[name]
    stated = row.split("|")[5].strip()
    assert stated == (f"{total / 1e9:.2f} B" if total > 1e9 else f"{total / 1e6:.1f} M")
    assert f"{config.backbone.layers}" in row and f"{config.backbone.dim}" in row
    assert f"{config.decoder.layers} " in row and f"{config.decoder.dim}" in row
    assert f"{config.num_codebooks} × {config.audio_vocab_size}" in row


def test_the_table_of_files_is_that_of_the_layers():
    table = README.split("## Where things are")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(ROWS)))
    assert [sorted(re.findall(r"`(\w+)/?`", files)) for _, files in rows] == [sorted(names) for names in ROWS]


def test_every_picture_is_there():
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (TOP / picture).is_file(), picture


def test_no_machine_path_or_token_is_in_the_tree():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True).stdout.split("\0")
    folders = "|".join(("root", "work", r"home/\w+"))
    odd = re.compile(rf"(/({folders})/|hf_[A-Za-z0-9]{{30}})")
    for name in filter(None, files):
        if Path(name).suffix in {".py", ".md", ".toml", ".txt", ".yml", ".json", ".css", ""} and name != "LICENSE":
            found = odd.search((TOP / name).read_text(encoding="utf-8"))
            assert not found, f"{name}: {found}"
