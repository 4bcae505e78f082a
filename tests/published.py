"""Small random models in the published layouts: transformers' own writer, and the original's names beside it."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CsmConfig, CsmForConditionalGeneration

from csm.checkpoint.published import find_weights, open_published
from csm.checkpoint.tensors import shapes_of
from csm.config import ModelConfig
from csm.model import CSM

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>"]
BOS, EOS, AUDIO, AUDIO_EOS = range(256, 260)
K, VOCAB = 4, 35
SCALED = {"rope_type": "llama3", "factor": 32.0}
BACKBONE_ROPE = SCALED | {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 128}
DEPTH_ROPE = SCALED | {"low_freq_factor": 0.25, "high_freq_factor": 1.0, "original_max_position_embeddings": 2}


def small_csm_config(**changes) -> CsmConfig:
    """A small model that differs from CSM-1B in every number, with its rotary scaling at work."""
    mimi = dict(
        model_type="mimi", hidden_size=32, num_filters=4, codebook_size=32, codebook_dim=16, num_quantizers=K,
        vector_quantization_hidden_dimension=16, upsample_groups=32, num_hidden_layers=2, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    depth = dict(
        num_codebooks=K, vocab_size=VOCAB, backbone_hidden_size=48, hidden_size=32, intermediate_size=40,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=K + 1,
        rope_theta=500_000, rope_scaling=DEPTH_ROPE,
    )  # fmt: skip
    options = dict(
        num_codebooks=K, vocab_size=VOCAB, text_vocab_size=260, hidden_size=48, intermediate_size=80,
        num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
        rope_theta=500_000, rope_scaling=BACKBONE_ROPE, bos_token_id=BOS, pad_token_id=AUDIO, audio_token_id=AUDIO,
        audio_eos_token_id=AUDIO_EOS, codebook_pad_token_id=VOCAB - 1, depth_decoder_config=depth, codec_config=mimi,
    )  # fmt: skip
    return CsmConfig(**(options | changes))


def small_reference(**changes) -> CsmForConditionalGeneration:
    """transformers' own model with random weights large enough to tell frames apart."""
    torch.manual_seed(0)
    model = CsmForConditionalGeneration(small_csm_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("codec_model."):
                parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2)
            elif ".conv.bias" in name:
                parameter.zero_()  # or the codec hears little else
        for name, buffer in model.codec_model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
            if name.endswith("cluster_usage"):
                buffer.uniform_(0.5, 2.0)
    return model


def write_tokenizer(folder: Path) -> None:
    """A `tokenizer.json` with Llama's special names and one id for every byte."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_transformers(folder: Path, model: CsmForConditionalGeneration | None = None, **options) -> Path:
    """What `save_pretrained` writes, and a tokenizer. `options` are its own, such as `max_shard_size`."""
    (model or small_reference()).save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder


def write_original(source: Path, folder: Path) -> Path:
    """The weights of a transformers folder in the original's names, with Mimi in moshi's beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_published(find_weights(source), "source", None)
    save_file({name: tensor.load(torch.float32) for name, tensor in opened.csm.items()}, folder / "model.safetensors")
    mimi = {name: tensor.load(torch.float32).contiguous() for name, tensor in opened.mimi().items()}
    save_file(mimi, folder / "mimi.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text())))
    write_tokenizer(folder)
    return folder


def hollow(folder: Path, config: ModelConfig) -> Path:
    """A model in the original layout with nothing beside it: its header in full, and numbers that take no room on the
    disk, however large the model is. All of them are zero."""
    with torch.device("meta"):
        shapes = shapes_of(CSM(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
