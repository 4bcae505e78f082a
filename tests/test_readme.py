"""What the papers show works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import papers
from tests.test_layers import LAYERS

TOP = Path(__file__).parent.parent
README = papers.README.read_text()
FRONT = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))
RECIPE = papers.DOCS / "training.md"


def test_the_readme_is_short():
    assert len(README.encode()) <= 7_000


def test_every_block_of_code_is_run_by_a_test():
    for block in papers.blocks():
        if papers.talks_to_the_app(block):
            assert [block in papers.for_client(*client) for client in papers.CLIENTS].count(True) == 1, str(block)
        else:
            assert block.language in ("python", "bash", "text"), str(block)
    assert all(len(papers.for_client(*client)) == 1 for client in papers.CLIENTS)


@pytest.mark.parametrize("block", papers.alone("python"), ids=str)
def test_a_python_snippet_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.paper.name, "exec"), {})
    written = re.findall(r'write_audio\("([^"]+)"', block.text)
    assert written and all((tmp_path / name).stat().st_size > 10_000 for name in written)


@pytest.mark.parametrize("block", papers.alone("bash"), ids=str)
def test_a_command_line_snippet_runs(block, tmp_path):
    done = subprocess.run(
        ["bash", "-euc", block.text.replace("python -m csm", f"{shlex.quote(sys.executable)} -m csm")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(TOP), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = re.findall(r"--(?:out|json|stems|subtitles|project) (\S+)", block.text)
    assert written and all((tmp_path / name).exists() for name in written)
    assert "yes (confidence" in done.stdout or "watermark check" not in block.text


def test_the_readme_shows_the_watermark_found():
    assert any("watermark check" in block.text for block in papers.alone("bash") if block.paper == papers.README)


def test_the_client_snippet_runs(app, capsys):
    exec(compile(papers.snippet("python", "gradio_client", app.url), "api.md", "exec"), {})
    assert ".wav" in capsys.readouterr().out


COMMANDS = [(paper.name, command) for paper in papers.PAPERS for command in papers.commands(paper)]


@pytest.mark.parametrize(("file", "command"), COMMANDS, ids=lambda value: value[:60])
def test_every_command_is_one_that_the_program_knows(file, command):
    """As far as that shows without running it: names, options and choices."""
    from csm.cli import _parser

    _parser().parse_args(shlex.split(command, comments=True))


def test_the_recipe_s_commands_are_found():
    steps = {command.split()[1] for command in papers.commands(RECIPE) if command.startswith("train ")}
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

    lines = (papers.DOCS / "models.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}`"))
    total, config = parameter_counts(PRESETS[name])["total"], PRESETS[name]
    stated = row.split("|")[5].strip()
    assert stated == (f"{total / 1e9:.2f} B" if total > 1e9 else f"{total / 1e6:.1f} M")
    assert f"{config.backbone.layers}" in row and f"{config.backbone.dim}" in row
    assert f"{config.decoder.layers} " in row and f"{config.decoder.dim}" in row
    assert f"{config.num_codebooks} × {config.audio_vocab_size}" in row


def test_the_table_of_files_is_that_of_the_layers():
    table = (papers.DOCS / "architecture.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(LAYERS)))
    assert [re.findall(r"`(\w+)/?`", files) for _, files in rows] == LAYERS


def anchors(paper: Path) -> set[str]:
    """The names by which a paper's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", paper.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("paper", papers.PAPERS, ids=lambda paper: paper.name)
def test_pictures_links_and_files_that_a_paper_names_are_there(paper):
    text = re.sub(r"^```.*?^```$", "", paper.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = paper.parent / file if file else paper
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link
    for name in re.findall(r"`((?:csm|docs|tests|prompts|\.github|\.ci)/[\w./-]*)`", text):
        assert (TOP / name).exists(), name


def test_every_paper_is_listed_in_the_readme():
    assert {str(paper.relative_to(TOP)) for paper in papers.PAPERS[1:]} <= set(re.findall(r"\]\(([^)#]+)\)", README))


def test_no_machine_path_or_token_is_in_the_tree():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True).stdout.split("\0")
    folders = "|".join(("root", "work", r"home/\w+"))
    odd = re.compile(rf"(/({folders})/|hf_[A-Za-z0-9]{{30}})")
    for name in filter(None, files):
        if Path(name).suffix in {".py", ".md", ".toml", ".txt", ".yml", ".json", ".css", ""} and name != "LICENSE":
            found = odd.search((TOP / name).read_text(encoding="utf-8"))
            assert not found, f"{name}: {found}"
