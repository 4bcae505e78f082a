"""What was said in a talk, once for both who remember it: the language model reads messages, CSM hears turns.

Each is made of the same items, so what leaves one leaves both: a truncated answer, a deleted turn.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.talk.clauses import heard_words
from csm.talk.options import MOST_ITEMS

VOICE, USER = 0, 1  # the speakers' slots
FRAME_MS = 80


@dataclass(frozen=True, eq=False)
class Said:
    """A piece of a turn as CSM hears it: `codes` int64 (frames, K) of `speaker`, which say `text`, and where the codec
    is told who speaks the embedding of that voice, float32 (D,)."""

    speaker: int
    text: str
    codes: Tensor
    embedding: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of an answer as it was written, and as it was spoken; `said` None where it was not."""

    written: str
    said: Said | None = None

    @property
    def frames(self) -> int:
        return len(self.said.codes) if self.said else 0

    def cut(self, frames: int) -> Piece | None:
        """The first `frames` of it, with the words that were heard in them; None where none was."""
        if frames >= self.frames:
            return self
        share = frames / self.frames
        written, text = heard_words(self.written, share), heard_words(self.said.text, share) if self.said else ""
        if not any(map(str.isalnum, text)) or self.said is None:
            return None
        return Piece(written, replace(self.said, text=text, codes=self.said.codes[:frames]))


@dataclass(eq=False)
class Item:
    """One entry of a talk: a `message` of `user`, `assistant` or `system`, or a `function_call` and its output.

    `sound` says whether it was spoken; `pieces` hold the words, and their codes where they were.
    """

    role: str
    kind: str = "message"
    pieces: list[Piece] = field(default_factory=list)
    sound: bool = False
    id: str = field(default_factory=lambda: f"item_{secrets.token_hex(12)}")
    done: bool = True
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str = ""

    @property
    def text(self) -> str:
        return "".join(piece.written for piece in self.pieces).strip()

    @property
    def frames(self) -> int:
        """How long it sounds."""
        return sum(piece.frames for piece in self.pieces)

    def truncate(self, frames: int) -> None:
        """Forget what comes after so many frames: the words with the sound."""
        kept: list[Piece] = []
        for piece in self.pieces:
            if frames <= 0:
                break
            if (cut := piece.cut(frames)) is not None:
                kept.append(cut)
            frames -= max(piece.frames, 0)
        self.pieces, self.done = kept, False


class Memory:
    """The items of one talk, in order."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put `item` behind the item called `after` (`root`: first; None: last) -> the name of that before it.

        Raises `InputError` for a name that is taken, or unknown."""
        if item.id in (known.id for known in self.items):
            raise InputError(f"There is an item {item.id} already: give this one another id.", "item_exists")
        at = len(self.items) if after is None else 0 if after == "root" else self._place(after) + 1
        self.items.insert(at, item)
        previous = self.items[at - 1].id if at else None
        if len(self.items) > MOST_ITEMS:  # many at once: each time, what stays is read in anew
            del self.items[: MOST_ITEMS // 4]
        return previous

    def find(self, name: Any) -> Item:
        """The item of that name. Raises `InputError`."""
        return self.items[self._place(name)]

    def delete(self, name: Any) -> None:
        """Forget an item. Raises `InputError`."""
        del self.items[self._place(name)]

    def truncate(self, name: Any, milliseconds: float) -> Item:
        """Forget what of an answer was not heard. Raises `InputError`."""
        item = self.find(name)
        if item.role != "assistant" or item.kind != "message":
            raise InputError("Only an answer can be truncated: name one of the assistant's items.", "invalid_item")
        item.truncate(int(milliseconds // FRAME_MS))
        return item

    def messages(self, instructions: str, letters: int) -> list[dict[str, Any]]:
        """The chat so far, `letters` of it at most: the oldest leave first."""
        told: list[dict[str, Any]] = []
        for item in reversed(self.items):
            if (message := _message(item)) is None:
                continue
            letters -= len(str(message))
            if letters < 0 and told:
                break
            told.insert(0, message)
        while told and told[0]["role"] == "tool":  # its call has left
            told.pop(0)
        return [*([{"role": "system", "content": instructions}] if instructions else []), *_joined(told)]

    def said(self) -> list[Said]:
        """All that was spoken, in order."""
        return [piece.said for item in self.items for piece in item.pieces if piece.said is not None]

    def _place(self, name: Any) -> int:
        for place, item in enumerate(self.items):
            if item.id == name:
                return place
        raise InputError(f"There is no item “{str(name)[:80]}” in this talk.", "item_not_found")


def milliseconds(samples: int) -> int:
    """How long so many samples at 24 kHz last."""
    return samples * 1000 // SAMPLE_RATE


def _message(item: Item) -> dict[str, Any] | None:
    if item.kind == "function_call":
        call = {"name": item.name, "arguments": item.arguments}
        made = {"id": item.call_id, "type": "function", "function": call}
        return {"role": "assistant", "content": None, "tool_calls": [made]}
    if item.kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
    return {"role": item.role, "content": item.text} if item.text else None


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls that were made at once as one message, as the chat API wants them."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if "tool_calls" in message and joined and "tool_calls" in joined[-1]:
            joined[-1] = {**joined[-1], "tool_calls": [*joined[-1]["tool_calls"], *message["tool_calls"]]}
        else:
            joined.append(message)
    return joined
