"""What strangers send, as Hypothesis's strategies: texts, JSON, scripts, sound files, zip files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from functools import lru_cache
from typing import Any

import numpy as np
import soundfile
from hypothesis import strategies as st

NASTY = (
    *("\0", "\u0301\u0316", "\u202e", "\ufeff", "\ud800", "\udfff", "\u200d", "\r", "\u2028", "\x1b[2J", "𝔘", "İ", "ß"),
    *("{{7*7}}", "<script>", "%s%n", "../../etc/passwd", "file:///etc/passwd", "C:\\", "NaN", "1e999", "-0", "1/2"),
    *("A: ", "A:", ": x", "A (softly): ", "[laughs]", "INT. ROOM - DAY", "@NAME", "00:00:01,000 --> 00:00:02,000"),
    *("WEBVTT\n\n", "1\n00:00:00,0 --> 0", "<v A>", "a,b,c\n", '"', "'", "|a|b|\n|-|-|", "# ", "- ", "…", "\t", "​"),
    *("12:60", "31.02.2024", "$1e9", "№ 5", "٣", "Ⅷ", "½", "http://x.y/?z", "999999999999999999999999", "e" * 300),
)
letters = st.sampled_from("abcdeABCDE .,!?:;-'\"0123456789\n")
words = st.deferred(lambda: st.text(letters, min_size=1, max_size=60))


def short(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The same under a short name: Hypothesis spells strategies out, and theirs would be long."""
    return st.deferred(lambda: strategy)


nasty = short(st.sampled_from(NASTY))
texts = short(
    st.one_of(
        words,
        st.text(max_size=40),
        st.lists(st.one_of(nasty, words, st.text(max_size=8)), max_size=12).map("".join),
        st.builds(lambda piece, count: piece * count, nasty, st.integers(1, 3_000)),
    )
)
plain_scripts = st.lists(
    st.builds(
        "{}: {}".format, st.sampled_from(["A", "B", "Anna", "C"]), words.map(lambda text: text.replace("\n", " "))
    ),
    min_size=1,
    max_size=4,
).map("\n".join)
scripts = short(st.one_of(plain_scripts, texts, st.lists(texts, max_size=6).map("\n".join)))
numbers = short(
    st.one_of(
        st.integers(-3, 60),
        st.integers(),
        st.floats(),
        st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e-320, 1e308, True]),
    )
)
plain = short(st.one_of(st.none(), st.booleans(), numbers, texts))
anything = short(
    st.recursive(
        plain,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
        max_leaves=8,
    )
)
deep = st.integers(1, 100_000).map(lambda depth: b"[" * depth)


def near(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly of `strategy`, now and then anything."""
    return short(st.one_of(strategy, strategy, strategy, anything))


def near_schema(schema: dict[str, Any], every: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """What a JSON schema allows or just doesn't: for those that pydantic writes."""
    every = every or schema.get("$defs", {})
    if "$ref" in schema:
        return near_schema(every[schema["$ref"].rpartition("/")[2]], every)
    if "anyOf" in schema:
        return st.one_of([near_schema(one, every) for one in schema["anyOf"]])
    if "enum" in schema:
        return near(st.sampled_from(schema["enum"]))
    if "const" in schema:
        return near(st.just(schema["const"]))
    kind = schema.get("type")
    if kind == "object":
        fields = {name: near_schema(one, every) for name, one in schema.get("properties", {}).items()}
        required = {name: fields.pop(name) for name in schema.get("required", []) if name in fields}
        return near(st.fixed_dictionaries(required, optional=fields))
    if kind == "array":
        return near(st.lists(near_schema(schema.get("items", {}), every), max_size=4))
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -10))
        return st.one_of(st.integers(int(low), int(low) + 50), st.floats(low, low + 1), numbers)
    if kind == "string":
        return near(st.one_of(words, texts))
    return {"null": st.none(), "boolean": st.booleans()}.get(str(kind), anything)


@st.composite
def bodies(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """JSON of a value, mostly as it should be."""
    value = draw(values)
    data = json.dumps(value, ensure_ascii=True).encode()
    how = draw(st.integers(0, 19))
    if how == 0:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if how == 1:
        return draw(changed(data))
    if how == 2:
        return draw(st.one_of(st.binary(max_size=200), deep))
    return data


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few others in their place, cut, or with something in between."""
    made = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        if not made:
            break
        at = draw(st.integers(0, len(made) - 1))
        how = draw(st.integers(0, 3))
        if how == 0:
            made[at] = draw(st.integers(0, 255))
        elif how == 1:
            del made[at:]
        elif how == 2:
            made[at:at] = draw(st.binary(max_size=8))
        else:
            piece = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x01\0\0\0"]))
            made[at : at + 4] = piece
    return bytes(made)


def wav(rate: int, channels: int, bits: int, claimed: int, data: bytes) -> bytes:
    """A WAV whose header says whatever it is told to."""
    head = struct.pack("<4sI4s4sIHH", b"RIFF", (36 + claimed) % 2**32, b"WAVE", b"fmt ", 16, 1, channels)
    head += struct.pack(
        "<IIHH4sI", rate, (rate * channels * bits // 8) % 2**32, channels * bits // 8 % 2**16, bits, b"data", claimed
    )
    return head + data


@lru_cache(maxsize=1)
def sound_files() -> dict[str, bytes]:
    """Half a second of a tone in every format that is known here."""
    tone = (0.3 * np.sin(np.arange(12_000) / 24_000 * 2 * np.pi * 220)).astype(np.float32)
    made = {}
    for name, kind in {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "aiff": "AIFF", "caf": "CAF"}.items():
        sink = io.BytesIO()
        soundfile.write(sink, tone, 24_000, format=kind)
        made[name] = sink.getvalue()
    made["m4a"] = _foreign(tone)
    return made


def _foreign(tone: np.ndarray) -> bytes:
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=24_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = 24_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return sink.getvalue()


@st.composite
def sounds(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name of a sound file and what is in it."""
    kind = draw(st.sampled_from([*sound_files(), "wav"]))
    name = draw(st.sampled_from([kind, kind, kind, "wav", "mp3", "raw", "txt", "webm", ""]))
    if draw(st.booleans()):
        return f"sound.{name}", draw(changed(sound_files()[kind]))
    rate = draw(st.sampled_from([0, 1, 8_000, 24_000, 44_100, 384_000, 655_350, 2**31, 2**32 - 1]))
    channels, bits = draw(st.sampled_from([0, 1, 2, 8, 64, 65_535])), draw(st.sampled_from([0, 1, 8, 16, 24, 32, 64]))
    claimed = draw(st.sampled_from([0, 1_000, 60_000, 2**31, 2**32 - 1]))
    data = draw(st.binary(max_size=64)) * draw(st.integers(0, 1_000))
    return f"sound.{name}", wav(rate, channels, bits, claimed, data)


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, one in inner for place in _places(one, (*way, key)))]


@st.composite
def changed_json(draw: st.DrawFn, document: Any) -> bytes:
    """A document with a few values replaced, dropped or added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(_places(document)))
        if not way:
            document = draw(st.one_of(st.just(document), anything))
            continue
        inside = document
        for key in way[:-1]:
            inside = inside[key]
        how = draw(st.integers(0, 3))
        if how == 0:
            del inside[way[-1]]
        elif how == 1 and isinstance(inside, dict):
            inside[draw(texts)] = draw(anything)
        else:
            inside[way[-1]] = draw(anything)
    return json.dumps(document).encode()


@st.composite
def changed_zips(draw: st.DrawFn, data: bytes) -> bytes:
    """A zip file with another document, other members, other names, or other bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(changed(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(members)))
        how = draw(st.integers(0, 6))
        if name.endswith(".json") and how < 5:
            try:
                members[name] = draw(changed_json(json.loads(members[name])))
            except ValueError:
                members[name] = draw(changed(members[name]))
        elif how == 5 and len(members) > 1:
            del members[name]
        elif how == 6:
            members[draw(st.sampled_from(["../x", "/etc/x", "a" * 300, "x\\y", "stop"]))] = draw(st.binary(max_size=50))
        else:
            members[name] = draw(st.one_of(changed(members[name]), sounds().map(lambda sound: sound[1])))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return sink.getvalue()
