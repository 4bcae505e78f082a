"""Stage directions in a turn's text: what is in brackets and not said, told from brackets that are."""

from __future__ import annotations

import re

from csm.utterance import marked

# First words of what actors do and sound like; behind them any ending: laughs, laughing, laughter.
_STAGE = re.compile(
    r"(?:laugh|chuckl|giggl|snicker|sigh|whisper|shout|yell|scream|cries|crying|sob|weep|gasp|cough|sneez|sniff|snort"
    r"|groan|moan|growl|grunt|yawn|hum(?:s|ming)\b|sing(?:s|ing)\b|mutter|mumbl|murmur|stammer|stutter|breath|inhal"
    r"|exhal|clear(?:s|ing) (?:\w+ )?throat|paus(?:e|es|ing)\b|(?:(?:long|short|brief) )?(?:pause|beat|silence)\b"
    r"|applau|cheer|smil|grin|nod(?:s|ding)\b|shrug|wink|frown|gestur|softly|quietly|loudly|angrily|sadly|happily"
    r"|gently|excited|nervous|sarcas|ironic|dramatic|cont['’]?d|continu(?:ed|ing)|v\.? ?o\.?$|o\.? ?[sc]\.?$"
    r"|off[ -]?(?:screen|stage|camera)|aside$|music\b|sfx\b|sound effect|enter(?:s|ing)?$|exit(?:s|ing)?$"
    r"|turn(?:s|ing) to\b|look(?:s|ing) (?:at|up|down|around|away)\b|lean(?:s|ing)\b|inaudible|crosstalk|笑)",
    re.IGNORECASE,
)
_BRACKETS = re.compile(
    r"(?<!\w)\[\[?(?P<square>[^\[\]]{1,200})\]\]?(?!\()"
    r"|(?<!\w)[(（](?P<round>[^()（）]{1,200})[)）]"
    r"|(?<![*\w])\*(?P<starred>[^*]{1,200})\*(?![*\w])|<(?P<tag>[a-z]{3,20})\s*/?>|\{(?P<curly>[a-z][a-z ]{1,60})\}"
)
_ROUND_ONLY = re.compile(r"(?:\s*[(（][^()（）]{1,200}[)）])+\s*")
_PUNCTUATION = tuple(",.;:!?…")
_FIRST = 5  # words in round brackets that open a turn
_AMIDST = 4  # words in those elsewhere


def left_out(text: str, alone: bool = False) -> tuple[str, tuple[str, ...]]:
    """A turn's text -> what is said, and the directions that were left out, in order.

    Square brackets with a letter in them are directions. Round ones are where they open the turn and are not a
    sentence, or say what actors do; those that are all there is (`alone`: a line without a label) are, too.
    """
    if not any(mark in text for mark in "[(（*<{"):
        return text, ()
    only = alone and _ROUND_ONLY.fullmatch(text) is not None
    found: list[str] = []
    said: list[str] = []
    end, opens = 0, True  # whether nothing has been said yet
    for match in _BRACKETS.finditer(text):
        opens = opens and not text[end : match.start()].strip()
        inside = match[match.lastgroup or 0].strip()
        if not inside or not _directs(match.lastgroup, inside, opens, only):
            opens = False
            continue
        found.append(inside)
        said.append(text[end : match.start()])
        end = match.end()
        if text.startswith(_PUNCTUATION, end):
            said[-1] = said[-1].rstrip()
    return (" ".join("".join([*said, text[end:]]).split()), tuple(found)) if found else (text, ())


def staged(inside: str) -> bool:
    """Whether this says what an actor does or sounds like: “laughs”, “whispering to Ben”."""
    return _STAGE.match(inside) is not None and len(inside.split()) <= 2 * _AMIDST


def written(directions: tuple[str, ...]) -> str:
    """Directions as they can stand before a turn's text and be read again."""
    return "".join(f"[{one.replace('[', '(').replace(']', ')')}] " for one in directions)


def _directs(kind: str | None, inside: str, opens: bool, only: bool) -> bool:
    """Whether what is inside of such brackets is a direction; `opens`: nothing was said before."""
    words = len(inside.split())
    if kind == "square":
        return any(map(str.isalpha, inside)) and not marked(f"[{inside}]")
    if kind != "round":
        return staged(inside)
    if only:
        return any(map(str.isalpha, inside))
    if opens and words <= _FIRST and inside[0].islower() and inside[-1] not in ".!?" and not re.search(r"\d", inside):
        return True
    return staged(inside) and words <= _AMIDST
