"""A session as the page shows it: plain JSON data on turns, takes, voices, the position budget and the sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csm.config import FRAME_RATE, SAMPLE_RATE
from csm.conversation.events import Comparing, Event, Performed, TurnChunk, TurnFinished, TurnStarted, Waiting
from csm.conversation.notices import read_as
from csm.conversation.parsing import MAX_SPEAKERS
from csm.conversation.positions import PromptLengths, positions
from csm.conversation.scripts.directions import written
from csm.conversation.session import Session
from csm.conversation.studio import MORE_TAKES
from csm.conversation.takes import Turn
from csm.errors import InputError
from csm.speech.generator import Generator
from csm.speech.voices import Voice
from csm.utterance import parts
from csm.web.encoding import samples
from csm.web.examples import Kept
from csm.web.pages import Page

BARS = 64  # in the picture of a sound
FLOOR = 4  # percent: silence is drawn as a thin line


def page_view(page: Page, lengths: PromptLengths) -> dict[str, Any]:
    """All that the page shows of its conversation."""
    session, version = page.session, page.version()
    new, page.new = page.new, False
    if session is None:
        return {"turns": [], "speakers": [], "voices": voices_view(page), "new": new}
    stale = session.stale_turns()
    turns = [turn_view(page, session, index, stale[index]) for index in range(len(session.turns))]
    view: dict[str, Any] = {
        "new": new,
        "turns": turns,
        "unheard": session.unheard,
        "script": "\n".join(f"{turn.speaker}: {written(turn.directions)}{turn.text}" for turn in session.turns),
        "understood": page.reading.told if page.reading and page.reading.guessed else "",
        "speakers": [{"label": label, "voice": name} for label, name in page.voice_names().items()],
        "voices": voices_view(page),
        "room": MAX_SPEAKERS - len(session.speakers),
        "first_open": session.first_open,
        "budget": (budget := budget_view(page.generator, session, lengths)),
        "estimate": estimate_view(page, budget),
        "settings": vars(session.settings),
        "dictionary": session.wording.dictionary.written,
        "spoken": session.wording.spelled_out,
        "sound": None,
    }
    if version:
        spans = session.spans()
        view["sound"] = {
            "version": version,
            "seconds": spans[-1].end / SAMPLE_RATE,
            "bars": page.bars(version, lambda: bars(torch.cat(session.sounds(page.generator)), BARS)),
            "spans": [{"index": span.index, "start": span.start / SAMPLE_RATE} for span in spans],
        }
        view["report"] = session.report(page.generator)
    return view


def turn_view(page: Page, session: Session, index: int, stale: bool) -> dict[str, Any]:
    """One card."""
    turn = session.turns[index]
    return {
        "speaker": turn.speaker,
        "text": turn.text,
        "words": read_as(page.generator, turn.text, session.wording),
        "pieces": _pieces(session, turn),
        "directions": list(turn.directions),
        "state": turn.status,
        "seconds": round(turn.seconds / session.settings.speed, 2),
        "stale": stale,
        "other_settings": session.other_settings(index),
        "chosen": turn.chosen,
        "doubt": turn.take.doubt if turn.take else "",
        "takes": [_take_view(page, session, index, number) for number in range(len(turn.takes))],
    }


def voices_view(page: Page) -> list[dict[str, Any]]:
    """The voices to choose from; `own` ones came from this page."""
    return [
        _voice_view(name, voice, voice.path.parent.is_relative_to(page.folder))
        for name, voice in page.offered().items()
    ]


def budget_view(generator: Generator, session: Session, lengths: PromptLengths) -> dict[str, Any]:
    """The position meter: what prompts, spoken and coming turns take. A voice that can't be used is left for later."""
    try:
        count = positions(generator, session, lengths)
    except InputError as error:
        return {"error": str(error)}
    return {
        "limit": count.limit,
        "prompts": sum(count.prompts.values()),
        "spoken": sum(turn.text + turn.audio for turn in count.turns if not turn.expected),
        "coming": sum(turn.text + turn.audio for turn in count.turns if turn.expected),
        "total": count.total,
        "fits": count.fits,
        "slides": count.slides,
        "too_long": count.too_long,
        "expected": [round(turn.audio / FRAME_RATE, 2) for turn in count.turns],
    }


def estimate_view(page: Page, budget: dict[str, Any]) -> dict[str, Any] | None:
    """What the turns that wait should give and take: `seconds` of sound, in `work` seconds by the pace of the last
    runs, after the `ahead` who wait already. None for voices that can't be used."""
    session, queue = page.session, page.studio.queue
    if session is None or "error" in budget:
        return None
    seconds = sum(length for length, turn in zip(budget["expected"], session.turns) if turn.take is None)
    work = seconds * (1 + MORE_TAKES * (session.settings.takes - 1)) * queue.pace
    return {"seconds": round(seconds, 1), "work": round(work, 1), "ahead": queue.waiting()[0]}


def event_view(page: Page, update: Event | Kept) -> dict[str, Any] | None:
    """One line of the stream that a page follows while it is spoken for; `page_view` goes with the last one."""
    if isinstance(update, Waiting):
        return {"type": "queue", "ahead": update.ahead, "seconds": round(update.seconds, 1)}
    if isinstance(update, Kept):
        return {"type": "kept"}
    if isinstance(update, Comparing):
        return {
            "type": "takes",
            "index": update.index,
            "frames": update.frames,
            "seconds": update.frames / FRAME_RATE,
            "heard": update.heard,
        }
    return _happening(page, update)


def bars(wave: Tensor, count: int) -> list[int]:
    """float32 (num_samples,) -> `count` loudnesses from 0 to 100, for a small picture of the sound."""
    if not len(wave):
        return [FLOOR] * count
    size = -(-len(wave) // count)
    loud = [float(wave[at : at + size].norm()) / size**0.5 for at in range(0, size * count, size)]
    top = max(*loud, 1e-4)
    return [max(FLOOR, round(100 * level / top)) for level in loud]


def pcm(wave: Tensor) -> bytes:
    """Little-endian 16-bit samples."""
    return samples(wave.numpy()).tobytes()


def _happening(page: Page, event: Event) -> dict[str, Any] | None:
    session = page.session
    assert session is not None
    if isinstance(event, TurnStarted):
        return {"type": "turn", "index": event.index, "total": event.total, "speaker": event.line.speaker}
    if isinstance(event, TurnChunk):
        return {"type": "sound", "index": event.index}
    if isinstance(event, TurnFinished):
        view = turn_view(page, session, event.index, session.stale(event.index))
        return {"type": "spoken", "index": event.index, "turn": view}
    if isinstance(event, Performed):
        told = [event.report[name] for name in ("notice", "warning") if name in event.report]
        return {"type": "end", "notice": " ".join(told)}
    return None


def _pieces(session: Session, turn: Turn) -> int:
    """In how many pieces a turn was spoken, or will be."""
    if turn.take:
        return len(turn.take.stretches)
    try:
        return sum(1 for part in parts(turn.text, session.wording) if part.text)
    except InputError:  # said where the text is
        return 1


def _take_view(page: Page, session: Session, index: int, number: int) -> dict[str, Any]:
    take = session.turns[index].takes[number]
    return {
        "key": take.key,
        "text": take.text,
        "seed": take.seed,
        "state": take.state,
        "seconds": round(take.seconds / session.settings.speed, 2),
        "reason": take.reason,
        "doubt": take.doubt,
        "bars": page.bars(
            f"{take.key} {take.samples}", lambda: bars(session.own_pace(page.generator, index, number), BARS)
        ),
    }


def _voice_view(name: str, voice: Voice, own: bool) -> dict[str, Any]:
    return {"name": name, "about": voice.description.partition(" (")[0], "own": own}
