"""`config.json` of the published layouts <-> `ModelConfig`. One file may serve both: the published one does.

The original layout names its shapes (`backbone_flavor`); the transformers layout spells them out, and leaves out
what equals that library's defaults, which are CSM-1B's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from csm.config import (
    BACKBONE_FLAVORS,
    DECODER_FLAVORS,
    FRAME_RATE,
    PRESETS,
    RELEASES,
    SAMPLE_RATE,
    MimiConfig,
    ModelConfig,
    RopeConfig,
    TransformerConfig,
)
from csm.errors import InputError

Json = dict[str, Any]

SPACE = "space_after_slot"  # ours; other loaders pass over it
# What the code builds in and a config may not change: field -> the one value that is supported.
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
FIXED_MIMI = {
    "model_type": "mimi",
    "sampling_rate": SAMPLE_RATE,
    "audio_channels": 1,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "num_semantic_quantizers": 1,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "sliding_window": 250,
    "attention_bias": False,
}


def read_config(folder: Path) -> Json | None:
    """`config.json` of a folder, or None where there is none. Raises `InputError` if it can't be read."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The config.json beside the weights can't be read ({error}): fetch it again.") from error
    if not isinstance(config, dict):
        raise InputError("The config.json beside the weights is no JSON object: fetch it again.")
    return config


def spells_shapes_out(config: Mapping[str, Any]) -> bool:
    """Whether a config has the transformers library's fields."""
    return "num_hidden_layers" in config or "depth_decoder_config" in config


def model_config(config: Json) -> ModelConfig:
    """The shape that a config describes. Raises `InputError` naming the odd field."""
    try:
        flavored = _from_flavors(config) if "backbone_flavor" in config or "decoder_flavor" in config else None
        if not spells_shapes_out(config):
            if flavored is None:
                raise InputError("The config.json beside the weights describes no CSM: fetch the model's own.")
            return flavored
        spelled = _from_transformers(config)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, KeyError) as error:
        raise InputError(f"The config.json beside the weights makes no sense ({error}): fetch it again.") from error
    if flavored and (flavored.backbone, flavored.decoder) != (spelled.backbone, spelled.decoder):
        raise InputError("In config.json the *_flavor fields and the sizes beside them disagree: correct one of them.")
    return spelled


def _from_flavors(config: Json) -> ModelConfig:
    def known(field: str, flavors: dict[str, TransformerConfig]) -> TransformerConfig:
        name = config.get(field)
        if name not in flavors:
            raise InputError(
                f"The {field} {name!r} in config.json is unknown: {', '.join(flavors)} are the known ones."
            )
        return flavors[name]

    tiny = PRESETS["tiny"]
    assert isinstance(tiny.codec, MimiConfig)
    backbone, decoder = known("backbone_flavor", BACKBONE_FLAVORS), known("decoder_flavor", DECODER_FLAVORS)
    return replace(
        tiny,
        backbone=backbone,
        decoder=decoder,
        space_after_slot=_space_after_slot(config, backbone, decoder),
        text_vocab_size=int(config.get("text_vocab_size", tiny.text_vocab_size)),
        audio_vocab_size=int(config.get("audio_vocab_size", tiny.audio_vocab_size)),
        codec=replace(tiny.codec, num_codebooks=int(config.get("audio_num_codebooks", tiny.num_codebooks))),
    )


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig | None:
    """The published model that tensors of these shapes, by our names, are of; None if of neither.

    Widths decide: whether all layers are there is for the loader to say. Head counts can't be seen in any shape, so
    that a model of other widths needs its config.json.
    """

    def widths(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        return {
            f"{stack}.layers.0.{matrix}.weight": (rows, sizes.dim)
            for stack, sizes in (("backbone", config.backbone), ("decoder", config.decoder))
            for matrix, rows in (
                ("attn.q_proj", sizes.heads * sizes.head_dim),
                ("attn.k_proj", sizes.kv_heads * sizes.head_dim),
                ("mlp.w1", sizes.mlp_dim),
            )
        }

    return next((made.config for made in RELEASES if widths(made.config).items() <= shapes.items()), None)


def _space_after_slot(config: Json, backbone: TransformerConfig, decoder: TransformerConfig) -> bool:
    """How its texts are written a checkpoint says itself; one that doesn't is like the published one of its shape."""
    published = {(made.config.backbone, made.config.decoder): made.config.space_after_slot for made in RELEASES}
    given = config.get(SPACE, published.get((backbone, decoder), False))
    if not isinstance(given, bool):
        raise InputError(f"In config.json {SPACE} is {given!r}: write true or false.")
    return given


def _demand(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for field, value in fixed.items():
        if config.get(field, value) != value:
            raise InputError(f"{where} in config.json has {field} {config[field]!r}; only {value!r} is supported.")


def _from_transformers(config: Json) -> ModelConfig:
    tiny = PRESETS["tiny"]
    depth = dict(config.get("depth_decoder_config") or {})
    mimi = dict(config.get("codec_config") or {})
    k = int(config.get("num_codebooks", tiny.num_codebooks))
    vocab = int(config.get("vocab_size", tiny.audio_vocab_size))
    backbone = _transformer(config, tiny.backbone, "The backbone")
    decoder = _transformer(depth, tiny.decoder, "The depth decoder")
    for field, value, default in (
        ("num_codebooks", k, tiny.num_codebooks),
        ("vocab_size", vocab, tiny.audio_vocab_size),
        ("backbone_hidden_size", backbone.dim, tiny.backbone.dim),
    ):
        if depth.get(field, default) != value:
            raise InputError(
                f"In config.json the depth decoder's {field} is {depth.get(field, default)}; the model's is {value}: "
                "correct one of them."
            )
    return ModelConfig(
        backbone=backbone,
        decoder=decoder,
        codec=_mimi(mimi, k),
        text_vocab_size=int(config.get("text_vocab_size", tiny.text_vocab_size)),
        audio_vocab_size=vocab,
        max_positions=int(config.get("max_position_embeddings", tiny.max_positions)),
        space_after_slot=_space_after_slot(config, backbone, decoder),
    )


def _transformer(config: Json, default: TransformerConfig, where: str) -> TransformerConfig:
    _demand(config, FIXED, where)
    dim = int(config.get("hidden_size", default.dim))
    heads = int(config.get("num_attention_heads", default.heads))
    width = config.get("head_dim")
    return TransformerConfig(
        layers=int(config.get("num_hidden_layers", default.layers)),
        dim=dim,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads", default.kv_heads) or heads),
        mlp_dim=int(config.get("intermediate_size", default.mlp_dim)),
        norm_eps=float(config.get("rms_norm_eps", default.norm_eps)),
        rope=_rope(config, where),
        head_width=int(width) if width and int(width) * heads != dim else None,
    )


def _rope(config: Json, where: str) -> RopeConfig:
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 500_000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta, factor=1.0)
    if kind != "llama3":
        raise InputError(f"{where} in config.json has rope_type {kind!r}; only 'llama3' and 'default' are supported.")
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    positions = float(given["original_max_position_embeddings"])
    # Only the ratios of these three matter; Llama writes them with a low factor of 1.
    return RopeConfig(theta, float(given["factor"]), 1.0, high / low, round(positions / low))


def _mimi(config: Json, num_codebooks: int) -> MimiConfig:
    _demand(config, FIXED_MIMI, "The codec")
    default = MimiConfig()
    made = MimiConfig(
        num_codebooks=num_codebooks,
        codebook_size=int(config.get("codebook_size", default.codebook_size)),
        total_codebooks=int(config.get("num_quantizers", default.total_codebooks)),
        dim=int(config.get("hidden_size", default.dim)),
        filters=int(config.get("num_filters", default.filters)),
        codebook_dim=int(config.get("codebook_dim") or default.codebook_dim),
        layers=int(config.get("num_hidden_layers", default.layers)),
        heads=int(config.get("num_attention_heads", default.heads)),
        mlp_dim=int(config.get("intermediate_size", default.mlp_dim)),
    )
    _demand(
        config,
        {
            "vector_quantization_hidden_dimension": made.codebook_dim,
            "upsample_groups": made.dim,
            "num_key_value_heads": made.heads,
            "head_dim": made.dim // made.heads,
            "frame_rate": FRAME_RATE,
        },
        "The codec",
    )
    if num_codebooks > made.total_codebooks:
        raise InputError(f"config.json asks for {num_codebooks} codebooks of a codec that has {made.total_codebooks}.")
    return made


def to_json(config: ModelConfig, given: Json | None = None) -> Json:
    """The config.json that serves both layouts. Fields of `given` that say nothing about shapes are kept."""
    codec = config.codec
    assert isinstance(codec, MimiConfig)
    k, vocab = config.num_codebooks, config.audio_vocab_size
    published = config.text_vocab_size >= PRESETS["tiny"].text_vocab_size
    first = 128_000 if published else config.text_vocab_size - 4  # Llama 3's special ids, or the last ones there are
    made: Json = {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        "bos_token_id": first,
        "eos_token_id": None,
        "pad_token_id": first + 2,
        "audio_token_id": first + 2,
        "audio_eos_token_id": first + 3,
        "codebook_pad_token_id": vocab - 1,
        "codebook_eos_token_id": 0,
        "tie_word_embeddings": False,
        **(given or {}),
        **_spell_out(config.backbone, config.max_positions),
        "num_codebooks": k,
        "vocab_size": vocab,
        "text_vocab_size": config.text_vocab_size,
        "audio_vocab_size": vocab,
        "audio_num_codebooks": k,
        SPACE: config.space_after_slot,
        "tie_codebooks_embeddings": True,
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            "tie_word_embeddings": False,
            **_spell_out(config.decoder, k + 1),
            "num_codebooks": k,
            "vocab_size": vocab,
            "backbone_hidden_size": config.backbone.dim,
        },
        "codec_config": {
            **FIXED_MIMI,
            "codebook_size": codec.codebook_size,
            "num_quantizers": codec.total_codebooks,
            "hidden_size": codec.dim,
            "num_filters": codec.filters,
            "codebook_dim": codec.codebook_dim,
            "vector_quantization_hidden_dimension": codec.codebook_dim,
            "upsample_groups": codec.dim,
            "num_hidden_layers": codec.layers,
            "num_attention_heads": codec.heads,
            "num_key_value_heads": codec.heads,
            "head_dim": codec.dim // codec.heads,
            "intermediate_size": codec.mlp_dim,
        },
    }
    for field in ("rope_parameters", "backbone_flavor", "decoder_flavor", "_name_or_path"):
        made.pop(field, None)
    backbone = next((name for name, known in BACKBONE_FLAVORS.items() if known == config.backbone), None)
    decoder = next((name for name, known in DECODER_FLAVORS.items() if known == config.decoder), None)
    if backbone and decoder:
        made |= {"backbone_flavor": backbone, "decoder_flavor": decoder}
    return made


def _spell_out(config: TransformerConfig, positions: int) -> Json:
    return {
        **FIXED,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": positions,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_scaling(config.rope, positions),
    }


def _rope_scaling(rope: RopeConfig, positions: int) -> Json | None:
    """That library wants an original length below the model's own: all three numbers are divided by a power of two."""
    if rope.factor == 1:
        return None
    shrink = 1
    while rope.original_positions / shrink > positions / 2:
        shrink *= 2
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor / shrink,
        "high_freq_factor": rope.high_freq_factor / shrink,
        "original_max_position_embeddings": rope.original_positions // shrink,
    }
