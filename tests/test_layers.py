"""The house: a file imports only from rows above its own (design: config at the top, app.py at the bottom)."""

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ROWS = [
    ["errors", "threads", "version"],
    ["config", "conversation", "extras", "reading", "recent", "settings"],
    ["audio", "text", "model"],
    ["kernels"],
    ["codec", "frames", "checkpoint", "voices", "watermark"],
    ["engine"],
    ["window", "prompts", "sound"],
    ["generator"],
    ["batching", "loading"],
    ["takes", "listening", "training"],
    ["events", "judges"],
    ["script", "waiting"],
    ["session", "positions"],
    ["project"],
    ["studio", "exports"],
    ["evaluation", "bench"],
    ["web"],
    ["cli", "__main__"],
]
# Within its row a checkpoint is filled into a codec, and some voices are fetched from where checkpoints are; everything
# else is strict.
SAME_ROW = {("checkpoint", "codec"), ("voices", "checkpoint"), ("__main__", "cli")}
ROW = {name: number for number, names in enumerate(ROWS) for name in names}


def part_of(module: str) -> str | None:
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "csm" and len(pieces) > 1 else None


def imports(file: Path):
    """(line, module) of every import of this project's, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "csm":
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}" if node.module == "csm" else node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "csm":
                    yield node.lineno, alias.name


FILES = sorted(file for file in (TOP / "csm").rglob("*.py") if file != TOP / "csm" / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TOP)))
def test_a_file_imports_only_from_rows_above(file):
    own = file.relative_to(TOP / "csm").parts[0].removesuffix(".py")
    assert own in ROW, f"{own} has no row: give it one"
    for line, module in imports(file):
        other = part_of(module)
        if other is None or other not in ROW:  # `import csm` or one of the names that csm/__init__.py lists
            assert ROW[own] > ROW["generator"], f"{file.name}:{line} imports the package from below the generator"
        elif other != own and (own, other) not in SAME_ROW:
            assert ROW[other] < ROW[own], f"{file.name}:{line}: {own} imports {other}"


def test_row_zero_needs_no_torch():
    for name in ROWS[0] + ROWS[1]:
        text = (TOP / "csm" / f"{name}.py").read_text()
        assert "torch" not in {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "from torch" not in text


def test_nothing_below_config_names_a_large_preset():
    """Presets are data: below config.py, only the loader and the recipe may say `nano`."""
    for file in FILES:
        if file.name != "config.py":
            assert '"medium"' not in file.read_text(), file


def test_the_gpu_decorator_is_used_in_one_file():
    users = [file for file in FILES if "spaces.GPU" in file.read_text() or "import spaces" in file.read_text()]
    assert [file.name for file in users] == ["gpu.py"]


def test_the_environment_is_read_in_one_place():
    readers = {file.name for file in FILES if "os.environ" in file.read_text() or "getenv" in file.read_text()}
    assert readers == {"config.py"}
