"""Small random models for tests: the real code path in milliseconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from csm.checkpoint import Loaded
from csm.codec import build_codec
from csm.config import MimiConfig, ModelConfig, RopeConfig, SpectralConfig, TransformerConfig
from csm.conversation.session import Session
from csm.conversation.takes import NOBODY
from csm.model import CSM
from csm.settings import Settings
from csm.speech.generator import Generator
from csm.text import ByteTokenizer

SMALL_MIMI = MimiConfig(
    num_codebooks=4,
    codebook_size=32,
    total_codebooks=8,
    dim=32,
    filters=4,
    codebook_dim=16,
    layers=2,
    heads=4,
    mlp_dim=64,
)
SMALL_LIGHT = SpectralConfig(num_codebooks=4, codebook_size=32, dim=32, mlp_dim=48, codebook_dim=16)


def small_config(codec: MimiConfig | SpectralConfig = SMALL_LIGHT, max_positions: int = 256) -> ModelConfig:
    return ModelConfig(
        backbone=TransformerConfig(layers=2, dim=32, heads=4, kv_heads=2, mlp_dim=64, rope=RopeConfig()),
        decoder=TransformerConfig(layers=2, dim=16, heads=2, kv_heads=1, mlp_dim=32, rope=RopeConfig()),
        codec=codec,
        text_vocab_size=258,
        audio_vocab_size=35,
        tokenizer="bytes",
        max_positions=max_positions,
    )


def small_generator(
    codec: MimiConfig | SpectralConfig = SMALL_LIGHT, max_positions: int = 256, slots_in_frames: bool = False
) -> Generator:
    """A random model that never ends by itself (an all-zero frame is as good as impossible)."""
    torch.manual_seed(0)
    config = replace(small_config(codec, max_positions), slots_in_frames=slots_in_frames)
    model = CSM(config).init_weights()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    made = build_codec(config.codec)
    fill_codebooks(made.module)
    return Generator(Loaded("small", model, made, ByteTokenizer()), torch.device("cpu"))


def fill_codebooks(module: torch.nn.Module) -> None:
    """moshi's codebooks start at zero, waiting for k-means; give them something to tell apart."""
    for name, buffer in module.named_buffers():
        if name.endswith("embedding_sum"):
            buffer.normal_()


def end_after(generator: Generator, frames: int) -> None:
    """Make every turn of this generator end by itself after `frames` frames."""
    engine = generator.engine
    sample = engine.model.sample_frame
    made = 0

    def sample_frame(state, sampling, noise):
        nonlocal made
        codes = sample(state, sampling, noise)
        made += 1
        if made > frames:
            made = 0
            return torch.zeros_like(codes)
        codes[:, 0].clamp_min_(1)
        return codes

    engine.model.sample_frame = sample_frame


def say_best(conversation, text, speaker, seeds, choose, settings=None, stop=lambda: False):
    """Takes side by side, of which `choose` keeps one; all of them, in the order of their seeds."""
    with conversation.takes(text, speaker, settings or Settings(), seeds) as takes:
        while takes.speaking and not stop():
            takes.step()
        turns = takes.finish()
        takes.keep(choose(turns))
    return turns


def performed(generator, lines, voices, settings=None, stop=lambda: False, judges=NOBODY):
    """What happens while a script is spoken once, from its first turn to its last."""
    return Session(lines, voices, settings or Settings()).speak(generator, stop=stop, judges=judges, live=False)
