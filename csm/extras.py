"""What of the package is optional, and which install brings it: said in one sentence where it is missing."""

from __future__ import annotations

from importlib.util import find_spec

from csm.errors import InputError

DISTRIBUTION = "csm-conversations"


def install(extra: str) -> str:
    """The command that brings `extra`, one of pyproject.toml's: from PyPI or, in a clone, the same with `-e .`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def need(extra: str, what: str, *modules: str) -> None:
    """Raise `InputError` unless all `modules`, which `extra` brings, are installed; `what` needs them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(f"{what} needs {' and '.join(missing)}: run `{install(extra)}`.")
