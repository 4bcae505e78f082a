"""What a talk can be told: which voice and words to begin with, when a turn is over, what its limits are. Only data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from csm.settings import USUAL, Settings

INSTRUCTIONS = (
    "You are talking with somebody: what you write is spoken aloud. Be friendly and brief, one or two short sentences. "
    "No lists, no headings, no emoji."
)
MOST_TALKS = 32  # at once, on one server
LONGEST_UTTERANCE = 40.0  # seconds of sound that one turn of the user's may have: a quarter of the model's positions
LONGEST_BUFFER = 120.0  # seconds of sound that wait to be committed
LONGEST_INSTRUCTIONS = 20_000  # letters
LONGEST_ANSWER = 4_000  # letters
MOST_ITEMS = 400  # of one talk; the oldest beyond them are forgotten
MOST_TOOLS = 64


@dataclass(frozen=True)
class Turns:
    """When the user's turn begins and ends. `semantic` asks Smart Turn where it is installed, and silence otherwise.

    `threshold` is the probability above which a moment is speech, `silence` the seconds that end a turn (that may, of
    a `semantic` one: it ends sooner where the sentence sounds whole), `prefix` the seconds that are kept from before
    it. `answers`: an end asks for an answer; `interrupts`: a beginning stops the one that is being spoken.
    """

    kind: Literal["semantic", "server"] = "semantic"
    threshold: float = 0.5
    silence: float = 0.8
    prefix: float = 0.3
    answers: bool = True
    interrupts: bool = True


@dataclass(frozen=True)
class TalkOptions:
    """How a talk goes on from here. `turns` None: the client says when a turn is over. `spoken` False: text alone.

    `model` names one of the language models on offer, `tools` are functions in the chat API's form; None in
    `temperature` and `most_tokens` leaves them to the language model.
    """

    voice: str
    instructions: str = INSTRUCTIONS
    model: str = ""
    turns: Turns | None = Turns()
    spoken: bool = True
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = "auto"
    temperature: float | None = None
    most_tokens: int | None = None
    settings: Settings = USUAL
