"""The papers, and what they show that a test can run: code blocks and commands."""

import re
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
README = TOP / "README.md"
DOCS = TOP / "docs"
PAPERS = [README, TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
ADDRESS = "http://127.0.0.1:7860"
# What talks to a running app, by language and a word that no other block has; each has a test of its own.
CLIENTS = [("python", "gradio_client"), ("python", "openai"), ("javascript", "@gradio/client"), ("sh", "curl")]


@dataclass(frozen=True)
class Block:
    """A fenced block of code: the paper it stands in, its language and its text."""

    paper: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.paper.name}, {self.language}: {self.text.splitlines()[0]}"


def blocks() -> list[Block]:
    """All of them, in order."""
    found = [(paper, re.findall(r"^```(\w*)\n(.*?)^```$", paper.read_text(), re.DOTALL | re.M)) for paper in PAPERS]
    return [Block(paper, language, text) for paper, fenced in found for language, text in fenced]


def talks_to_the_app(block: Block) -> bool:
    return ADDRESS in block.text


def for_client(language: str, word: str) -> list[Block]:
    return [block for block in blocks() if block.language == language and word in block.text]


def snippet(language: str, word: str, url: str) -> str:
    """The one block of `CLIENTS` that is meant, for an app that runs at `url`."""
    (block,) = for_client(language, word)
    assert talks_to_the_app(block)
    return block.text.replace(ADDRESS, url.rstrip("/"))


def alone(language: str) -> list[Block]:
    """The blocks in `language` that need no app."""
    return [block for block in blocks() if block.language == language and not talks_to_the_app(block)]


def commands(paper: Path) -> list[str]:
    """What stands after `-m csm` in each indented line of a paper, comments left out."""
    lines = [part for line in re.findall(r"^    (.+)$", paper.read_text(), re.MULTILINE) for part in line.split("&&")]
    return [line.split(" -m csm ", 1)[1] for line in lines if " -m csm " in line and "…" not in line]
