"""A conversation as one file, `NAME.csm`: script, settings, voices, takes and their codes; opened, it plays back
bit-identically.

A zip of JSON, one safetensors file of codes and the recordings of the voices. Nothing in it is executed, and how much
is read is bounded before it is read.
"""

from __future__ import annotations

import json
import json.scanner
import math
import os
import secrets
import zipfile
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from csm.archives import Archive
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.parsing import MAX_LABEL, MAX_SPEAKERS, Line
from csm.conversation.script import Prompt
from csm.conversation.session import Session
from csm.conversation.spoken import MOST_KEPT, Spent
from csm.conversation.takes import Scores, Stretch, Take, Turn
from csm.errors import InputError
from csm.files import output
from csm.limits import (
    LONGEST_DICTIONARY,
    LONGEST_TURN,
    MOST_ASKED,
    MOST_CODES,
    MOST_JSON,
    MOST_RECORDING,
    MOST_TURNS_SAVED,
    MOST_VALUES,
    check_turns,
    values_in,
)
from csm.settings import Settings
from csm.speech.generator import Generator
from csm.speech.voices import Voice, fetched
from csm.utterance import Dictionary, Wording
from csm.version import __version__

SUFFIX = ".csm"
FORMAT, VERSION = "csm-conversation", 1
RECORDINGS = (".wav", ".flac", ".ogg", ".mp3")
MOST_FRAMES = 20_000  # of one take: more than any model here has positions for
TOLD = ("name", "transcript", "licence", "origin", "description")  # of a voice
MOST_SILENCE = 3_600 * SAMPLE_RATE  # samples behind one piece
MOST_SPEAKER_DIM = 4_096  # numbers of a speaker's embedding
STATES = ("ended", "capped", "stopped")


def check_project(path: str | Path) -> None:
    """Raise `InputError` when `save_project` could not write there; ask before an hour of work, not after it."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"{path.name} can't be written: end the name of the project in {SUFFIX}.")
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise InputError(f"{path} can't be written; give the name of a file in a folder that is there.")


def save_project(path: str | Path, session: Session) -> None:
    """Write the session to `path`, which ends in .csm; whole or not at all. Raises `InputError`."""
    check_project(path)
    check_turns([turn.text for turn in session.turns], MOST_TURNS_SAVED)
    path = Path(path)
    codes: dict[str, Tensor] = {}
    recordings: dict[str, Path] = {}

    speakers: dict[bytes, str] = {}

    def keep(tensor: Tensor) -> str:
        name = f"{len(codes)}"
        codes[name] = tensor.to(torch.int32).contiguous()
        return name

    def keep_speaker(embedding: Tensor | None) -> str | None:
        """Once, however many takes are in that voice."""
        if embedding is None:
            return None
        same = embedding.to(torch.float32).contiguous()
        name = speakers.setdefault(same.numpy().tobytes(), f"speaker {len(speakers)}")
        codes[name] = same
        return name

    def voice(speaker: str, one: Voice) -> dict[str, Any]:
        here = fetched(one)
        name = f"voices/{len(recordings)}{here.path.suffix.lower()}"
        if here.path.suffix.lower() not in RECORDINGS:
            raise InputError(f"The recording of {one.name} is not one of {', '.join(RECORDINGS)}: it can't be saved.")
        recordings[name] = here.path
        prompt = session.prompts.get(speaker)
        known = prompt if prompt and prompt.voice == one else None
        about = {key: getattr(one, key) for key in TOLD} | {"recording": name}
        told = keep_speaker(known.embedding) if known else None
        return {**about, "codes": keep(known.codes) if known else None, "embedding": told}

    document = {
        "format": FORMAT,
        "version": VERSION,
        "program": __version__,
        "model": session.model,
        "codec": session.codec,
        "settings": asdict(session.settings),
        "spent": asdict(session.spent),
        "dictionary": session.wording.dictionary.written,
        "spelled_out": session.wording.spelled_out,
        "slots": session.slots,
        "voices": {speaker: voice(speaker, one) for speaker, one in session.voices.items()},
        "turns": [
            {
                "speaker": turn.speaker,
                "text": turn.text,
                "directions": turn.directions,
                "chosen": turn.chosen,
                "drawn": turn.drawn,
                "takes": [
                    {**_told(take), "codes": keep(take.codes), "embedding": keep_speaker(take.embedding)}
                    for take in turn.takes
                ],
            }
            for turn in session.turns
        ],
    }
    with output(path, UnicodeError, zipfile.BadZipFile) as part:
        for packed in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            with zipfile.ZipFile(part, "w", packed) as archive:
                archive.writestr("project.json", json.dumps(document, indent=1, ensure_ascii=False))
                archive.writestr("codes.safetensors", save_tensors(codes))
                for name, recording in recordings.items():
                    archive.write(recording, name)
            try:
                _opened(part, None, None)
                break
            except InputError as error:  # packed too well to be opened again
                refused = error
        else:
            raise InputError(f"{path.name} would be too large to be opened again: save it in parts.") from refused


def _told(take: Take) -> dict[str, Any]:
    """All of a take but its codes and its speaker, as JSON data."""
    told = {name: value for name, value in vars(take).items() if name not in ("codes", "embedding", "key")}
    pieces = [asdict(piece) for piece in take.pieces]
    return {**told, "scores": asdict(take.scores) if take.scores else None, "pieces": pieces}


def open_project(path: str | Path, folder: str | Path, generator: Generator | None = None) -> Session:
    """Read a project; the voices' recordings are put into `folder`, which must exist.

    With a `generator`, a project that another model spoke is refused; of one that earlier weights of the same model
    spoke, the takes are let go and counted in `unheard`. Raises `InputError` in one sentence for a file that is
    damaged, foreign, too large, or from a newer version of this program.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise InputError(f"There is no project file {path}.")
    return _opened(path, Path(folder), generator)


def _opened(path: Path, folder: Path | None, generator: Generator | None) -> Session:
    """`open_project`; without a `folder` the recordings are read, and put nowhere."""
    foreign = InputError(f"{path.name} is not a project of this program; choose a {SUFFIX} file that it saved.")
    try:
        with Archive(path) as archive:
            if "project.json" not in archive.names:
                raise foreign
            document = _document(archive.read("project.json", MOST_JSON))
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise foreign
            if not isinstance(document.get("version"), int) or document["version"] > VERSION:
                raise InputError(
                    f"{path.name} was saved by a newer version of this program ({document.get('program')}); update it."
                )
            unheard = generator is not None and document["codec"] not in (None, generator.codec_key)
            if generator and unheard and document["model"] != generator.model_name:
                raise InputError(
                    f"{path.name} was spoken by the model {document['model']}, and its codes mean nothing to "
                    f"{generator.model_name}: load {document['model']} first."
                )
            codes = load_tensors(archive.read("codes.safetensors", MOST_CODES))
            session = _session(document, _Codes(codes, None if unheard else generator), archive, folder)
            if unheard:
                session.let_go()
            return session
    except InputError:
        raise
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise foreign from error
    except (
        *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RecursionError, RuntimeError),
        *(SafetensorError, TypeError, ValueError, zlib.error),
    ) as error:
        raise InputError(f"{path.name} is damaged and can't be opened; use another copy of it.") from error


class _Codes:
    """The tensors of a project, checked: int64 (frames, K), the same K in all, within what a model can say."""

    def __init__(self, tensors: dict[str, Tensor], generator: Generator | None) -> None:
        self._tensors = tensors
        self._width = generator.config.num_codebooks if generator else None
        self._most = generator.config.audio_vocab_size if generator else 1 << 20
        self._speaker_dim = generator.codec.speaker_dim if generator else 0
        self._asked = 0

    def __getitem__(self, name: str) -> Tensor:
        self._asked += 1
        if self._asked > len(self._tensors):
            raise ValueError("Each take has codes of its own.")
        codes = self._tensors[name].to(torch.int64)
        if codes.dim() != 2 or len(codes) > MOST_FRAMES:
            raise ValueError("Codes are (frames, K).")
        self._width = self._width or codes.shape[1]
        if codes.shape[1] != self._width or (len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self._most):
            raise ValueError("Codes of another model.")
        return codes

    def embedding(self, about: dict[str, Any]) -> Tensor | None:
        """Whose voice it is in, float32 (D,); projects of models that aren't told have none."""
        if (name := about.get("embedding")) is None:
            return None
        embedding = self._tensors[name].to(torch.float32)
        size = self._speaker_dim or embedding.shape[-1]
        if embedding.shape != (size,) or size > MOST_SPEAKER_DIM or not bool(embedding.isfinite().all()):
            raise ValueError("A speaker of another model.")
        return embedding


def _document(data: bytes) -> Any:
    """The JSON of a project, unless it has more in it than one may."""
    if (values := values_in(data)) > MOST_VALUES:
        raise ValueError("Too many values.")
    return json.loads(data, cls=_Interruptible if values > MOST_ASKED else None)


class _Interruptible(json.JSONDecoder):
    """Reads by Python what C would read in one go: other threads run in between."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def _session(document: dict[str, Any], codes: _Codes, archive: Archive, folder: Path | None) -> Session:
    """A document of this version -> a session. Raises all sorts of errors for one that is damaged."""
    if not 0 < len(document["turns"]) <= MOST_TURNS_SAVED or len(document["voices"]) > 4 * MAX_SPEAKERS:
        raise ValueError("Too many turns or voices.")
    lines = [
        Line(_words(turn["speaker"], MAX_LABEL), _words(turn["text"]), 1, _directions(turn))
        for turn in document["turns"]
    ]
    session = Session(lines, {}, Settings(**_numbers(document["settings"])), _wording(document))
    session.spent = Spent(**_numbers(document["spent"]))
    slots = {_words(speaker, MAX_LABEL): slot for speaker, slot in document["slots"].items()}
    numbers = set(slots.values())
    if set(slots) != set(session.speakers) or len(numbers) != len(slots) or not numbers <= set(range(MOST_TURNS_SAVED)):
        raise ValueError("The speakers' numbers are off.")
    session.slots = slots
    session.model = _words(document["model"]) if document["model"] is not None else None
    session.codec = _words(document["codec"]) if document["codec"] is not None else None
    for number, (speaker, about) in enumerate(document["voices"].items()):
        suffix = Path(_words(about["recording"])).suffix
        if suffix not in RECORDINGS:
            raise ValueError("A voice without a recording.")
        recording = archive.read(about["recording"], MOST_RECORDING)
        place = Path(f"voice-{number}-{secrets.token_hex(4)}{suffix}")
        if folder is not None:
            place = folder / place
            place.write_bytes(recording)
        told: dict[str, Any] = {key: _words(about[key]) for key in TOLD}
        session.voices[_words(speaker, MAX_LABEL)] = voice = Voice(path=place, **told)
        if about["codes"] is not None:
            session.prompts[speaker] = Prompt(voice, codes[about["codes"]], codes.embedding(about))
    session.turns = [_turn(turn, about, codes) for turn, about in zip(session.turns, document["turns"])]
    return session


def _wording(document: dict[str, Any]) -> Wording:
    """Projects from before there was any have the plain one."""
    spelled_out = document.get("spelled_out", False)
    if not isinstance(spelled_out, bool):
        raise TypeError("Whether texts are spelt out is yes or no.")
    return Wording(Dictionary.read(_words(document.get("dictionary", ""), LONGEST_DICTIONARY)), spelled_out)


def _directions(turn: dict[str, Any]) -> tuple[str, ...]:
    """Projects from before directions were kept have none."""
    return tuple(map(_words, _list(turn.get("directions", []))))


def _turn(turn: Turn, about: dict[str, Any], codes: _Codes) -> Turn:
    takes = tuple(_take(one, codes) for one in about["takes"])
    chosen, drawn = about["chosen"], _whole(about["drawn"], 0)
    if len(takes) > MOST_KEPT or (chosen is not None and not 0 <= _whole(chosen, 0) < len(takes)):
        raise ValueError("The kept take is not there.")
    return replace(turn, takes=takes, chosen=chosen, drawn=drawn)


def _take(about: dict[str, Any], codes: _Codes) -> Take:
    made = codes[about["codes"]]
    samples = _whole(about["samples"], 0)
    pieces = tuple(map(_piece, _list(about.get("pieces", []))))
    if pieces and sum(piece.frames for piece in pieces) != len(made):
        raise ValueError("The pieces of a take are not its frames.")
    if pieces and sum(piece.samples + piece.silence for piece in pieces) != samples:
        raise ValueError("The pieces of a take are not its sound.")
    if samples - sum(piece.silence for piece in pieces) > len(made) * FRAME_SIZE or about["state"] not in STATES:
        raise ValueError("A take is longer than its codes, or did not end in any known way.")
    return Take(
        seed=_whole(about["seed"], 0),
        text=_words(about["text"]),
        codes=made,
        state=about["state"],
        samples=samples,
        embedding=codes.embedding(about),
        history=_words(about["history"], 64),
        positions_prefilled=_whole(about["positions_prefilled"], 0),
        scores=Scores(**_numbers(about["scores"])) if about["scores"] is not None else None,
        reason=_words(about["reason"]),
        heard_from=_whole(about.get("heard_from", 0), 0),
        drawing=_words(about.get("drawing", "")),
        from_seed=_whole(seed, 0) if (seed := about.get("from_seed")) is not None else None,
        pieces=pieces,
        doubt=_words(about.get("doubt", "")),
        again=_whole(about.get("again", 0), 0),
    )


def _piece(about: dict[str, Any]) -> Stretch:
    frames, samples, silence = (_whole(about[name], 0) for name in ("frames", "samples", "silence"))
    text = _words(about["text"])
    if samples > frames * FRAME_SIZE or (frames and not text) or silence > MOST_SILENCE:
        raise ValueError("A piece is longer than its codes, or has no text.")
    return Stretch(text, frames, samples, silence)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("A list is missing.")
    return value


def _words(value: Any, longest: int = LONGEST_TURN) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise TypeError("A text is missing or too long.")
    return value


def _whole(value: Any, smallest: int) -> int:
    if type(value) is not int or not smallest <= value < 2**63:
        raise TypeError("A number is missing.")
    return value


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Named numbers, all finite; None and truth values pass too."""
    for value in values.values():
        if not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
            raise TypeError("A number is missing.")
    return values
