"""How to speak, as one object that travels whole from the command line, the page and the routes to the draw of a code.

Every field carries what it means and what it may be. Whoever asks for settings (arguments, the page's fields, JSON)
reads that here, so a new setting is one field, and the place that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from csm.errors import InputError

UNBOUNDED = 2**62  # a bound beyond this is none that a user needs to be told


@dataclass(frozen=True)
class About:
    """What a setting is: `label` names it over a field, `subject` in a sentence, `help` says what it does.

    It lies between `least` (or, with `above`, just over it) and `most`, both numbers `whole` or not; `step` is how far
    an arrow key goes where that is not 1. `draws`: it changes which codes are drawn. `json`: its name in `/v1`.
    """

    label: str
    subject: str
    help: str
    least: float
    most: float = UNBOUNDED
    above: bool = False
    whole: bool = False
    step: float | None = None
    draws: bool = False
    json: str = ""

    @property
    def range(self) -> str:
        """What may be chosen, as the end of a sentence."""
        number = "a whole number" if self.whole else "a number"
        if self.most >= UNBOUNDED:
            return f"{number} of at least {self.least:g}"
        between = f"above {self.least:g} and at most" if self.above else f"from {self.least:g} to"
        return f"{number} {between} {self.most:g}"

    @property
    def schema(self) -> dict[str, Any]:
        """The same as JSON schema."""
        bounds = {"exclusiveMinimum" if self.above else "minimum": self.least}
        bounds |= {"maximum": self.most} if self.most < UNBOUNDED else {}
        return {"type": "integer" if self.whole else "number", "description": self.help, **bounds}

    def read(self, value: Any) -> Any:
        """`number`, and within bounds. Raises `InputError`."""
        number = self.number(value)
        self.check(number)
        return number

    def number(self, value: Any) -> Any:
        """What somebody typed or sent, as a number of this kind. Raises `InputError` where it is none."""
        try:
            if isinstance(value, bool):
                raise ValueError("No number.")
            number = float(value)
            if self.whole:
                return value if isinstance(value, int) else int(value) if number == int(number) else number
            return number
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{self.subject} must be a number; choose {self.range}.") from error

    def check(self, value: Any) -> None:
        """Raise `InputError` for a number that is out of bounds, or not whole where it has to be."""
        low = value > self.least if self.above else value >= self.least
        if not (low and value <= self.most and (not self.whole or isinstance(value, int))):
            raise InputError(f"{self.subject} can't be {value}; choose {self.range}.")


def _about(default: Any, label: str, subject: str, help: str, least: float, **more: Any) -> Any:
    return field(default=default, metadata={"about": About(label, subject, help, least, **more)})


@dataclass(frozen=True)
class Settings:
    """How to speak. The same seed, voices and script give the same conversation; of several takes the best is kept.

    None is the model's own (`filled` puts it in). Raises `InputError` for what is out of bounds.
    """

    seed: int = _about(
        7, "Seed", "The seed", "the same seed, the same speech", 0, most=2**63 - 1, whole=True, json="seed"
    )
    temperature: float | None = _about(
        None,
        "Temperature",
        "The temperature",
        "how freely codes are drawn; lower is calmer",
        0,
        most=10,
        above=True,
        step=0.05,
        draws=True,
        json="temperature",
    )
    topk: int | None = _about(
        None,
        "Top-k",
        "Top-k",
        "how many of the likeliest codes are drawn from; 1 is always the likeliest",
        1,
        whole=True,
        draws=True,
        json="top_k",
    )
    max_turn_seconds: float = _about(
        20.0,
        "Longest turn in seconds",
        "The longest turn",
        "where a turn that does not end by itself is cut",
        0.08,
        most=600,
    )
    takes: int = _about(
        1,
        "Takes of each turn",
        "The number of takes",
        "how often each turn is spoken; the best take is kept, and the report says why",
        1,
        most=16,
        whole=True,
    )

    min_p: float = _about(
        0.0,
        "Min-p",
        "Min-p",
        "codes less likely than this times the likeliest are left out; 0 leaves out none",
        0,
        most=1,
        step=0.05,
        draws=True,
        json="min_p",
    )
    speed: float = _about(
        1.0,
        "Speed",
        "The speed",
        "how fast the speech is heard, at the same pitch; 1 is the model's own pace",
        0.25,
        most=4,
        step=0.05,
        json="speed",
    )

    def __post_init__(self) -> None:
        for name, about in ABOUT.items():
            if (value := getattr(self, name)) is not None:
                about.check(value)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Settings:
        """From what somebody typed or sent, by field; what is missing or None stays as usual. Raises `InputError`."""
        found = {name: given.get(name) for name in ABOUT}
        return cls(**{name: ABOUT[name].number(value) for name, value in found.items() if value is not None})

    def filled(self, usual: object) -> Settings:
        """With what is None taken from the fields of `usual`, a model's config."""
        missing = {name: getattr(usual, name) for name in ABOUT if getattr(self, name) is None}
        return replace(self, **missing) if missing else self

    @property
    def floor(self) -> float:
        """How far below the largest a logit, divided by the temperature, may lie: the logarithm of `min_p`."""
        return math.log(self.min_p) if self.min_p else -math.inf

    @property
    def greedy(self) -> bool:
        """Whether always the likeliest code is taken."""
        return self.topk == 1

    @property
    def drawing(self) -> str:
        """In words, how codes are drawn with these settings, the seed aside.

        Projects keep these words, so what is at its default is left out, unless the default is the model's own."""
        told = []
        for one in fields(self):
            about, value = ABOUT[one.name], getattr(self, one.name)
            if about.draws and (one.default is None or value != one.default):
                shown = "the model's" if value is None else value
                told.append(f"{about.label.lower()} {shown}")
        return ", ".join(told)


ABOUT: dict[str, About] = {one.name: one.metadata["about"] for one in fields(Settings)}
USUAL = Settings()
