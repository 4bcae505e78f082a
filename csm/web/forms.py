"""What stands in the page's fields, as its requests tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csm.settings import USUAL, Settings
from csm.utterance import PLAIN, Wording
from csm.web.endpoints import RANDOM_SEED, read_settings, read_wording


@dataclass(frozen=True)
class Form:
    """What stands in the page's fields. `voices` names a voice by speaker; without a `seed` one is drawn.

    `as_it_stands`: the script is to be spoken as it is written, whatever it looks like.
    `wording`: how texts are worded.
    """

    script: str
    voices: dict[str, str]
    settings: Settings
    drawn: bool
    as_it_stands: bool = False
    wording: Wording = PLAIN

    @classmethod
    def read(cls, data: Any) -> Form:
        """From the JSON of a request. Raises `MisplacedError`."""
        data = data if isinstance(data, dict) else {}
        given, voices = data.get("settings"), data.get("voices")
        given = given if isinstance(given, dict) else {}
        voices = voices if isinstance(voices, dict) else {}
        seed = given.get("seed", USUAL.seed)
        settings = read_settings(given)
        script = data.get("script")
        chosen = {str(speaker): str(name) for speaker, name in voices.items()}
        text, drawn = script if isinstance(script, str) else "", seed in (None, RANDOM_SEED)
        dictionary = data.get("dictionary")
        wording = read_wording(dictionary if isinstance(dictionary, str) else "", data.get("spoken") is True)
        return cls(text, chosen, settings, drawn, data.get("as_it_stands") is True, wording)
