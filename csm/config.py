"""The sizes of a model, as data: frozen dataclasses and the four presets. No torch, no file access.

Everything below this file is one code path that reads a `ModelConfig`; nothing else knows a preset's name.
Numbers of `tiny` are those of sesame/csm-1b (Llama 3.2 1B backbone, a 100M decoder), those of `medium` are MisoTTS'
(Llama 3.1 8B, 300M); `small` takes its backbone from Llama 3.2 3B, and its decoder is a guess.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from csm.errors import InputError
from csm.threads import MOST_THREADS, OPENMP, OURS, threads_said, usual_threads

SAMPLE_RATE = 24_000
FRAME_RATE = 12.5
FRAME_SIZE = 1_920  # samples at 24 kHz: 80 ms


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding with Llama 3's frequency scaling; `factor` 1 leaves the frequencies alone."""

    theta: float = 500_000.0
    factor: float = 32.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8_192


@dataclass(frozen=True)
class TransformerConfig:
    """A Llama-style decoder: pre-norm, grouped-query attention, SwiGLU."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    mlp_dim: int
    norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    head_width: int | None = None  # where it isn't dim / heads

    @property
    def head_dim(self) -> int:
        return self.head_width or self.dim // self.heads


@dataclass(frozen=True)
class MimiConfig:
    """Mimi as the `moshi` package builds it; the defaults are the published shape for CSM-1B."""

    kind: str = "mimi"
    num_codebooks: int = 32
    codebook_size: int = 2_048
    total_codebooks: int = 32
    dim: int = 512
    filters: int = 64
    codebook_dim: int = 256
    layers: int = 8
    heads: int = 8
    mlp_dim: int = 2_048


@dataclass(frozen=True)
class SpectralConfig:
    """The light codec: log-mel frames in, short-time spectra out, matrix products at 100 Hz throughout.

    `speaker_dim`: how many numbers tell the decoder in which voice to speak; with 0 the codes alone do. `codes_of` is
    the key of an earlier codec (`csm.codec.codec_key`) whose codes these are, though its decoder was another.
    """

    kind: str = "spectral"
    num_codebooks: int = 8
    codebook_size: int = 512
    dim: int = 256
    mlp_dim: int = 768
    codebook_dim: int = 128
    encoder_blocks: int = 3
    decoder_blocks: int = 5
    mels: int = 100
    speaker_dim: int = 0
    speaker_blocks: int = 3
    codes_of: str = ""


CodecConfig = MimiConfig | SpectralConfig


@dataclass(frozen=True)
class ModelConfig:
    """A whole CSM. `audio_vocab_size` counts the codec's codes and three that never reach the codec.

    `temperature` and `topk` are how it samples when nobody says otherwise: a small model is better off calm.
    `slots_in_frames`: every row of sound has its speaker's slot in the text column, and so has a row behind each text.
    The published models must find out from the text before a frame whose it is; a small one is told.
    `space_after_slot`: texts were `[0] Hello.` in training, and not `[0]Hello.`; the byte tokenizer has no such space.
    """

    backbone: TransformerConfig
    decoder: TransformerConfig
    codec: CodecConfig
    text_vocab_size: int
    audio_vocab_size: int
    tokenizer: str = "llama3"
    max_positions: int = 2_048
    temperature: float = 0.9
    topk: int = 50
    slots_in_frames: bool = False
    space_after_slot: bool = False

    @property
    def num_codebooks(self) -> int:
        return self.codec.num_codebooks

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises `ValueError` naming a missing or unknown field."""

        def build(kind: type, values: dict[str, Any]) -> Any:
            known = {field.name for field in fields(kind)}
            if unknown := sorted(set(values) - known):
                raise ValueError(f"Unknown field {unknown[0]!r} in a {kind.__name__}.")
            try:
                return kind(**values)
            except TypeError as error:
                raise ValueError(f"A {kind.__name__} is incomplete: {error}.") from error

        def transformer(values: dict[str, Any]) -> TransformerConfig:
            return build(TransformerConfig, {**values, "rope": build(RopeConfig, values.get("rope", {}))})

        codec = build(MimiConfig if data["codec"]["kind"] == "mimi" else SpectralConfig, data["codec"])
        return build(
            cls,
            {
                **data,
                "backbone": transformer(data["backbone"]),
                "decoder": transformer(data["decoder"]),
                "codec": codec,
            },
        )


_PLAIN_ROPE = RopeConfig(theta=10_000.0, factor=1.0)


def _llama(backbone: TransformerConfig, decoder: TransformerConfig, space_after_slot: bool = False) -> ModelConfig:
    return ModelConfig(backbone, decoder, MimiConfig(), 128_256, 2_051, space_after_slot=space_after_slot)


PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        backbone=TransformerConfig(layers=6, dim=256, heads=4, kv_heads=2, mlp_dim=704, rope=_PLAIN_ROPE),
        decoder=TransformerConfig(layers=3, dim=192, heads=3, kv_heads=1, mlp_dim=512, rope=_PLAIN_ROPE),
        codec=SpectralConfig(),
        text_vocab_size=258,
        audio_vocab_size=515,
        tokenizer="bytes",
        temperature=0.25,
        slots_in_frames=True,
    ),
    "tiny": _llama(
        TransformerConfig(layers=16, dim=2_048, heads=32, kv_heads=8, mlp_dim=8_192),
        TransformerConfig(layers=4, dim=1_024, heads=8, kv_heads=2, mlp_dim=8_192),
    ),
    # Nobody has published a model of this size. Of its decoder only the size is known, 250M: it runs K-1 times a
    # frame, so the guess is as shallow as tiny's and grows in width.
    "small": _llama(
        TransformerConfig(layers=28, dim=3_072, heads=24, kv_heads=8, mlp_dim=8_192),
        TransformerConfig(layers=4, dim=1_536, heads=12, kv_heads=3, mlp_dim=12_288),
    ),
    "medium": _llama(
        TransformerConfig(layers=32, dim=4_096, heads=32, kv_heads=8, mlp_dim=14_336),
        TransformerConfig(layers=8, dim=1_536, heads=24, kv_heads=6, mlp_dim=6_912),
        space_after_slot=True,
    ),
}


@dataclass(frozen=True)
class Release:
    """Published weights: the hub id, the preset whose shape they have, and the terms they stand under."""

    repository: str
    preset: str
    licence: str

    @property
    def config(self) -> ModelConfig:
        return PRESETS[self.preset]


RELEASES = (
    Release(
        "sesame/csm-1b",
        "tiny",
        "Apache-2.0 as published by Sesame, whose page forbids impersonation, disinformation and illegal use; Mimi "
        "inside is CC BY 4.0",
    ),
    Release(
        "MisoLabs/MisoTTS",
        "medium",
        "a modified MIT licence as published by Miso Labs, who forbid impersonation, deception and fraud; Mimi is "
        "CC BY 4.0",
    ),
)


# The names that a config.json in the original layout gives to a transformer's shape. The first of each are the
# published ones; the others follow their pattern.
BACKBONE_FLAVORS: dict[str, TransformerConfig] = {
    "llama-1B": PRESETS["tiny"].backbone,
    "llama-3B": PRESETS["small"].backbone,
    "llama-8B": PRESETS["medium"].backbone,
}
DECODER_FLAVORS: dict[str, TransformerConfig] = {
    "llama-100M": PRESETS["tiny"].decoder,
    "llama-250M": PRESETS["small"].decoder,
    "llama-300M": PRESETS["medium"].decoder,
}

# Ungated copies of sesame/csm-1b in the transformers layout: they stand in where the hub refuses the original.
MOST_SLOTS = 256
UNGATED_COPIES = "unsloth/csm-1b,eustlb/csm-1b"


@dataclass(frozen=True)
class Environment:
    """The environment variables that the program reads, read here and nowhere else.

    CSM_FALLBACK names the hub ids, separated by commas, that may stand in for the gated model; `none` forbids it.
    CSM_API_KEY is what programs must send to the app's `/v1` routes; without it those are open. CSM_WEIGHTS is the
    precision of the language model's matrices, such as int8; without it `load` decides. CSM_SLOTS is how many the
    server speaks for at the same time; without it the device decides. CSM_HOSTS and CSM_ORIGINS, separated by commas,
    are the names under which the app may be asked, and the other sites that may ask it. CSM_LISTEN=0 keeps the
    recogniser, where one is installed, from hearing every turn. CSM_LLM_URL is the address of the chat API that a talk
    asks for words, CSM_LLM_KEY its key, and CSM_LLM_MODEL the names of its models, the usual one first.
    CSM_VOICES is a folder in which voices that programs bring outlive the server, and CSM_ACCESS_LOG a file (`-` is
    standard error) in which every request is a line of JSON.
    GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, SPACE_HOST and GRADIO_TEMP_DIR are Gradio's and the hub's, RAY_ADDRESS is
    Ray's, OMP_NUM_THREADS OpenMP's. CSM_THREADS is how many threads a CPU's work takes where OMP_NUM_THREADS doesn't
    say; without it, as many as cores may be used.
    """

    model: str | None
    device: str
    token: str | None
    fallback: tuple[str, ...]
    api_key: str | None
    weights: str | None = None
    threads: str | None = None
    slots: int | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    listens_at: str = ""
    listens_on: int | None = None
    space_host: str = ""
    uploads: str | None = None
    listen: bool = True
    llm_url: str | None = None
    llm_key: str | None = None
    llm_names: tuple[str, ...] = ()
    voices: str | None = None
    access_log: str | None = None
    ray_address: str | None = None

    @classmethod
    def read(cls) -> Environment:
        """Raises `InputError` for a number that is none."""
        names = _names(os.environ.get("CSM_FALLBACK") or UNGATED_COPIES)
        return cls(
            model=os.environ.get("CSM_MODEL") or None,
            device=os.environ.get("CSM_DEVICE") or "auto",
            token=os.environ.get("HF_TOKEN") or None,
            fallback=tuple(name for name in names if name != "none"),
            api_key=os.environ.get("CSM_API_KEY") or None,
            weights=os.environ.get("CSM_WEIGHTS") or None,
            threads=os.environ.get(OPENMP) or _threads(os.environ.get(OURS) or ""),
            slots=_slots(os.environ.get("CSM_SLOTS") or ""),
            hosts=_names(os.environ.get("CSM_HOSTS") or ""),
            origins=_names(os.environ.get("CSM_ORIGINS") or ""),
            listens_at=os.environ.get("GRADIO_SERVER_NAME") or "",
            listens_on=_port(os.environ.get("GRADIO_SERVER_PORT") or ""),
            space_host=os.environ.get("SPACE_HOST") or "",
            uploads=os.environ.get("GRADIO_TEMP_DIR") or None,
            listen=os.environ.get("CSM_LISTEN") != "0",
            llm_url=_address(os.environ.get("CSM_LLM_URL") or ""),
            llm_key=os.environ.get("CSM_LLM_KEY") or None,
            llm_names=_names(os.environ.get("CSM_LLM_MODEL") or ""),
            voices=os.environ.get("CSM_VOICES") or None,
            access_log=os.environ.get("CSM_ACCESS_LOG") or None,
            ray_address=os.environ.get("RAY_ADDRESS") or None,
        )

    @staticmethod
    def usual_threads(torchs: int) -> int:
        """How many threads to take where torch takes `torchs` by itself. Raises nothing: `read` does."""
        return usual_threads(os.environ, torchs)

    @staticmethod
    def upload_to(folder: str) -> None:
        """Have Gradio keep what is uploaded in `folder`, from the next component on."""
        os.environ["GRADIO_TEMP_DIR"] = folder

    @staticmethod
    def changed(**changes: str) -> dict[str, str]:
        """The environment of a process to be started, with `changes`."""
        return os.environ | changes

    def __repr__(self) -> str:  # a token must not reach a log
        return f"Environment(model={self.model!r}, device={self.device!r})"


def _names(given: str) -> tuple[str, ...]:
    return tuple(name for name in map(str.strip, given.split(",")) if name)


def _address(given: str) -> str | None:
    if given and not given.startswith(("http://", "https://")):
        raise InputError("CSM_LLM_URL must begin with http:// or https://, such as http://127.0.0.1:11434/v1.")
    return given.rstrip("/") or None


def _port(given: str) -> int | None:
    if given and not (given.isdecimal() and 1 <= int(given) <= 65_535):
        raise InputError(f"GRADIO_SERVER_PORT can't be {given}; choose a whole number from 1 to 65535.")
    return int(given) if given else None


def _threads(given: str) -> str | None:
    if given and threads_said(given) is None:
        raise InputError(f"{OURS} can't be {given}; choose a whole number from 1 to {MOST_THREADS}.")
    return given or None


def _slots(given: str) -> int | None:
    if not given:
        return None
    if not given.isdecimal() or not 1 <= int(given) <= MOST_SLOTS:
        raise InputError(f"CSM_SLOTS can't be {given}; choose a whole number from 1 to {MOST_SLOTS}.")
    return int(given)
