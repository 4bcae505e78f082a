"""The published shape, whole: how much memory a load takes, and that the numbers are the reference's there too."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from csm.checkpoint import layouts, mimi_keys
from csm.checkpoint.configs import to_json
from csm.checkpoint.published import mimi_shapes
from csm.checkpoint.tensors import Stored, shapes_of, write_tensors
from csm.config import PRESETS
from csm.model import CSM
from csm.model.size import parameter_counts
from tests.published import hollow, write_tokenizer

LOAD = r"""
import json, re, sys, time
from pathlib import Path
import torch
from csm.checkpoint import load_model

def peak():  # of this process alone: getrusage also counts the one that started it
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
start = time.monotonic()
loaded = load_model(sys.argv[1], torch.bfloat16)
seconds = time.monotonic() - start
highest = peak()
assert all(tensor.dtype == torch.bfloat16 for tensor in loaded.model.state_dict().values())
print(json.dumps({"before": before, "peak": highest, "seconds": seconds}))
"""


def random(shape):
    def load(dtype):  # the same numbers each time: tied embeddings are written twice
        generator = torch.Generator().manual_seed(sum(shape))
        made = torch.empty(shape, dtype=torch.float32).normal_(std=0.02, generator=generator)
        return (made.add_(1) if len(shape) == 1 else made).to(dtype)  # norms near 1, or the layers would do nothing

    return Stored(shape, torch.float32, load)


def write_published_shape(folder, layout):
    """CSM-1B's own shape in float32 with small random numbers, 6 to 7 GB."""
    config = PRESETS["tiny"]
    folder.mkdir()
    with torch.device("meta"):
        csm = {name: random(shape) for name, shape in shapes_of(CSM(config)).items()}
    mimi = {name: random(shape) for name, shape in mimi_shapes(config.codec).items()}
    if layout == "transformers":
        whole = layouts.to_transformers(csm, config)
        codec = mimi_keys.to_transformers(mimi, config.codec)
        write_tensors(folder / "model.safetensors", whole | {f"codec_model.{name}": t for name, t in codec.items()})
    else:
        write_tensors(folder / "mimi.safetensors", mimi)
        if layout == "original":
            write_tensors(folder / "model.safetensors", csm)
        else:
            torch.save({name: tensor.load(torch.float32) for name, tensor in csm.items()}, folder / "ckpt.pt")
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    write_tokenizer(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["transformers", "original", "pickle"])
def test_a_bfloat16_load_of_the_published_shape_needs_its_own_size_and_little_more(tmp_path, layout):
    check_peak(write_published_shape(tmp_path / layout, layout), PRESETS["tiny"])


@pytest.mark.slow
def test_a_bfloat16_load_of_misotts_does_too(tmp_path):
    """Its layout, widths and vocabularies, with 2 layers of each kind: 5.7 GB in float32."""
    config = PRESETS["medium"]
    config = replace(config, backbone=replace(config.backbone, layers=2), decoder=replace(config.decoder, layers=2))
    folder = hollow(tmp_path / "medium", config)
    mimi = {name: random(shape) for name, shape in mimi_shapes(config.codec).items()}
    write_tensors(folder / "mimi.safetensors", mimi)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    write_tokenizer(folder)
    check_peak(folder, config)


def check_peak(folder, config):
    """Peak host memory stays under the bfloat16 size plus 1.5 GB, the interpreter and its libraries included."""
    size = 2 * parameter_counts(config)["total"]
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(
        f"{folder.name}: {figures['peak'] / 1e9:.2f} GB at the peak, {figures['before'] / 1e9:.2f} GB before, "
        f"{size / 1e9:.2f} GB of weights, {figures['seconds']:.1f} s"
    )
    assert figures["peak"] < size + 1.5e9


@pytest.mark.slow
def test_at_the_published_shape_the_numbers_are_the_reference_s(tmp_path):
    from transformers import CsmForConditionalGeneration

    from csm.checkpoint import load_model

    folder = write_published_shape(tmp_path / "transformers", "transformers")
    model = load_model(str(folder)).model
    reference = CsmForConditionalGeneration.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 128_000, (1, 12), generator=generator)
    frames = torch.randint(0, 2048, (1, 12, 32), generator=generator)
    rows = torch.zeros(1, 24, 33, dtype=torch.int64)
    rows[:, :12, -1], rows[:, 12:, :-1] = ids, frames
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[:, :12, -1], mask[:, 12:, :-1] = True, True
    with torch.inference_mode():
        embedded = torch.cat([reference.embed_text_tokens(ids), reference.backbone_model.embed_tokens(frames)], dim=1)
        theirs = reference.backbone_model(inputs_embeds=embedded).last_hidden_state
        ours = model.backbone(model.embed_rows(rows, mask))
        state, codes = theirs[0, -4:], frames[0, -4:]
        depth = reference.depth_decoder(
            torch.nn.functional.pad(codes[:, :-1], (1, 0)), backbone_last_hidden_state=state.clone()
        ).logits
        pairs = {
            "hidden states": (ours, theirs),
            "logits of code 0": (model.codebook0_head(ours), reference.lm_head(theirs)),
            "logits of codes 1-31": (model.depth_logits(state, codes), depth),
        }
    for what, (mine, their) in pairs.items():
        off = (mine - their).abs().max() / their.abs().max()
        print(f"{what}: {off:.1e}")
        assert off < 1e-4
