"""A talk as a conversation of the page: each turn with the codes it was spoken in, to be redone and exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from csm.config import FRAME_SIZE
from csm.conversation.parsing import Line
from csm.conversation.script import Prompt
from csm.conversation.session import Session
from csm.conversation.takes import Take
from csm.errors import InputError
from csm.speech.generator import Generator
from csm.speech.voices import Voice, fetched
from csm.talk.memory import Item

USER, VOICE = "You", "Voice"


def as_script(items: list[Item], voice: Voice, others: Mapping[str, Voice], generator: Generator) -> Session:
    """What was said, by the user and by `voice`; a turn that was only written waits to be spoken.

    The user has the first of the `others` as a voice, for turns that are spoken anew. Raises `InputError` where nothing
    was said."""
    said = [item for item in items if item.kind == "message" and item.role in ("user", "assistant") and item.text]
    if not said:
        raise InputError("Nothing has been said yet: talk first.", "nothing_said")
    lines = [
        Line(USER if item.role == "user" else VOICE, " ".join(item.text.split()), number)
        for number, item in enumerate(said, 1)
    ]
    other = next((one for one in others.values() if one != voice), voice)
    voices = {name: fetched(one) for name, one in ((USER, other), (VOICE, voice))}
    session = Session(lines, {line.speaker: voices[line.speaker] for line in lines})
    session.prompts = {name: Prompt.of(voices[name], generator.prompt(voices[name])) for name in session.speakers}
    session.model, session.codec = generator.model_name, generator.codec_key
    for index, item in enumerate(said):
        spoken = [piece.said for piece in item.pieces if piece.said is not None]
        if not spoken:
            continue
        whole = torch.cat([one.codes for one in spoken])
        turn, state = session.turns[index], "ended" if item.done else "stopped"
        history = session.histories()[index]
        take = Take(session.settings.seed, turn.text, whole, state, len(whole) * FRAME_SIZE, history)
        take = replace(take, embedding=spoken[0].embedding)
        session.turns[index] = replace(turn, takes=(take,), chosen=0, drawn=1)
    return session
