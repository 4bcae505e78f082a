"""The house: a room imports only from layers above its own and, within its layer, from rooms that stand before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
LAYERS = [
    ["errors", "threads", "version", "extras", "recent", "limits", "files", "archives"]
    + ["config", "settings", "spoken", "utterance", "assets", "foreign", "audio", "text"],
    ["model", "kernels", "codec", "checkpoint", "watermark"],
    ["engine"],
    ["speech", "listening"],
    ["conversation", "talk"],
    ["training", "evaluation", "bench"],
    ["web", "cli", "__main__"],
]
ROW = {("checkpoint", "codec"), ("voices", "checkpoint"), ("__main__", "cli")}
ROOMS = [name for names in LAYERS for name in names]
PLACE = {name: place for place, name in enumerate(ROOMS)}


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
def test_a_room_imports_only_from_rooms_before_it(file):
    own = file.relative_to(TOP / "csm").parts[0].removesuffix(".py")
    assert own in PLACE, f"{own} has no layer: give it one"
    for line, module in imports(file):
        other = part_of(module)
        if other is None or other not in PLACE:  # `import csm` or one of the names that csm/__init__.py lists
            assert PLACE[own] > PLACE["speech"], f"{file.name}:{line} imports the package, which imports {own}"
        elif other != own:
            assert PLACE[other] < PLACE[own], f"{file.name}:{line}: {own} imports {other}"


def test_what_comes_first_needs_no_torch():
    for file in FILES:
        own = file.relative_to(TOP / "csm").parts[0].removesuffix(".py")
        if PLACE[own] >= PLACE["audio"]:
            continue
        text = file.read_text()
        assert "torch" not in {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "from torch" not in text


def test_no_file_imports_itself_on_a_way_round():
    """Inside a room, too: files can be read one after the other."""
    names = {".".join(file.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    reached = {name: {module for _, module in imports(file) if module in names} for name, file in names.items()}
    reached = {name: {m for m in others if not name.startswith(f"{m}.")} for name, others in reached.items()}
    left = dict(reached)
    while ready := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ready}
    assert not left, f"on a ring: {sorted(left)}"


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


def test_importing_the_package_brings_no_torch_and_finds_all_that_it_lists():
    asked = "import sys, csm; assert 'torch' not in sys.modules; [getattr(csm, name) for name in csm.__all__]"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, cwd=TOP)
    assert told.returncode == 0, told.stderr
