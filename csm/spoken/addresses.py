"""What is typed into machines: web and mail addresses, IPs, file names, hashtags, handles, names such as C++."""

from __future__ import annotations

import re

from csm.spoken.numbers import cardinal, digits, letters, plain_year
from csm.spoken.rules import Rule, rule

TOP = "com org net edu gov info io ai app dev tv uk de fr eu us ca au jp ch at nl it es se no co me int biz xyz".split()
TOP += "ly gg fm cc".split()
SAID_TOP = frozenset("com org net gov info app dev co me biz us".split())  # the others are spelt
ENDINGS = "pdf txt csv json xml html htm css js ts py rs go md docx doc xlsx xls pptx zip tar gz exe jpg jpeg png gif"
ENDINGS += " svg mp3 mp4 wav avi mov yaml yml toml ini cfg sh bat php sql log"
SAID_ENDINGS = {"doc": "doc", "zip": "zip", "tar": "tar", "log": "log", "gif": "gif", "go": "go", "mov": "move"}
SAID_ENDINGS |= {"json": "jason", "jpeg": "jay peg", "jpg": "jay peg", "toml": "tomel", "yaml": "yamel", "bat": "bat"}
SIGNS = {
    ".": "dot",
    "/": "slash",
    "@": "at",
    "-": "dash",
    "_": "underscore",
    "+": "plus",
    ":": "colon",
    "?": "question mark",
}
SIGNS |= {"=": "equals", "&": "and", "#": "hash", "~": "tilde", "%": "percent", "\\": "backslash", ",": "comma"}

_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\w\s]|_")
_TOP = "|".join(TOP)
_GROUPS = r"[\da-fA-F]{1,4}(?::[\da-fA-F]{1,4}){0,6}"


def spelt_out(text: str) -> str:
    """An address piece by piece: "jane.doe@example.com" -> "jane dot doe at example dot com"."""
    said, before = [], ""
    for piece in _PIECE.findall(text):
        if piece.isdecimal():
            said.append(_figure(piece))
        elif piece in SIGNS:
            said.append(SIGNS[piece])
        elif piece.isalpha():
            lower = piece.lower()
            spelt = lower == "www" or (before == "." and lower in TOP and lower not in SAID_TOP)
            if before == "." and (lower in SAID_ENDINGS or lower in ENDINGS.split()):
                said.append(SAID_ENDINGS.get(lower, letters(lower)))
            else:
                as_typed = piece if piece.isupper() else lower  # capitals are told apart later: #AI, #NASA
                said.append(letters(lower) if spelt or not re.search("[aeiouy]", lower) else as_typed)
        before = piece
    return " ".join(said)


def _figure(text: str) -> str:
    if re.fullmatch(r"(?:19|20)\d\d", text):
        return plain_year(text)
    return cardinal(int(text)) if len(text) < 3 and text[0] != "0" else digits(text)


def _url(match: re.Match[str]) -> str:
    address = match[0]
    stop = re.search(r"[.,;:!?'\")\]]+$", address)
    end = stop[0] if stop else ""
    address = address[: len(address) - len(end)]
    return spelt_out(re.sub(r"^[a-z]{2,6}://", "", address, flags=re.I).rstrip("/")) + end


def _ip(match: re.Match[str]) -> str | None:
    parts = match[1].split(".")
    if any(int(part) > 255 for part in parts):
        return None
    said = " dot ".join(map(digits, parts))
    said += f" slash {cardinal(int(match[3]))}" if match[3] else ""
    return f"{said} port {digits(match[2])}" if match[2] else said


def _hexadecimal(match: re.Match[str]) -> str:
    """IPv6 and hardware addresses, sign by sign."""
    said = {":": "colon"}
    return " ".join(said.get(sign) or (digits(sign) if sign.isdecimal() else letters(sign)) for sign in match[0])


def _hashtag(match: re.Match[str]) -> str:
    return f"hashtag {spelt_out(match[1])}"


RULES: list[Rule] = [
    rule(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?!\w)", lambda m: spelt_out(m[0])),
    rule(r"(?<![\w/])(?:https?|ftp)://[^\s<>\"“”]{1,300}", _url, re.I),
    rule(r"(?<![\w/.])www\.[^\s<>\"“”]{1,300}", _url, re.I),
    rule(rf"(?<![\w/.@])(?:[A-Za-z0-9-]{{1,63}}\.){{1,6}}(?:{_TOP})(?![\w@-])(?:/[^\s<>\"“”]{{0,300}})?", _url),
    rule(rf"(?<![\w:.])(?=[\w:]{{0,39}}\d)(?:{_GROUPS})?::(?:{_GROUPS})?(?![\w:])", _hexadecimal),
    rule(r"(?<![\w:.])(?:[\da-fA-F]{1,4}:){7}[\da-fA-F]{1,4}(?![\w:])", _hexadecimal),
    rule(r"(?<![\w:.])(?:[\da-fA-F]{2}:){5}[\da-fA-F]{2}(?![\w:])", _hexadecimal),
    rule(r"(?<![\w.])(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})(?::(\d{1,5})|/(\d{1,2}))?(?![\w]|\.\d)", _ip),
    rule(r"(?<![\w./])(?:~|\.{1,2})?(?:/[\w.-]{1,64}){2,20}/?(?<![.,])(?!\w)", lambda m: spelt_out(m[0])),
    rule(r"(?<![\w./])(?:~|\.{1,2})/[\w.-]{1,64}(?<![.,])(?!\w)", lambda m: spelt_out(m[0])),
    rule(r"(?<![\w/])([ru])/([A-Za-z_]\w{1,40})(?!\w)", lambda m: f"{m[1]} slash {spelt_out(m[2])}"),
    rule(r"(?<!\w)[A-Z]:(?:\\[\w.-]{1,64}){1,20}(?<![.,])(?!\w)", lambda m: spelt_out(m[0])),
    rule(rf"(?<![\w.])(?:[\w-]{{1,64}}\.){{1,4}}(?:{'|'.join(ENDINGS.split())})(?!\w|\.\w)", lambda m: spelt_out(m[0])),
    rule(r"(?<!\w)(Node|Vue|Next|React|Express|Three|D3)\.js(?!\w)", lambda m: f"{m[1]} dot J S"),
    rule(r"(?<!\w)([A-Za-z]{2,10})\.NET(?!\w)|(?<![\w.])\.NET(?!\w)", lambda m: f"{m[1] or ''} dot net".strip()),
    rule(r"(?<!\w)([A-Za-z])\+\+(?![A-Za-z])", lambda m: f"{m[1]} plus plus"),
    rule(r"(?<!\w)([A-GJ])#(?!\w)", lambda m: f"{m[1]} sharp"),
    rule(r"(?<!\w)#(?=[\dA-Fa-f]{0,5}\d)([\dA-Fa-f]{6})(?!\w)", lambda m: f"hash {letters(m[1])}"),
    rule(r"(?<!\w)0x([\dA-Fa-f]{1,16})(?!\w)", lambda m: f"zero x {letters(m[1])}"),
    rule(r"(?<!\w)#([A-Za-z_]\w{0,80}|\d{1,4}(?!(?:st|nd|rd|th)\b)[A-Za-z]\w{1,80})", _hashtag),
    rule(r"(?<!\w)#(?=\d)", "number "),
    rule(r"(?<![\w@])@([A-Za-z_][\w.]{0,40}\w)", lambda m: f"at {spelt_out(m[1])}"),
]
