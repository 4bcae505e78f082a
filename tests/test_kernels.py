"""The GPU's kernels: under Triton's interpreter against plain torch; on a GPU, where there is one, as they are."""

import ast
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from csm.config import PRESETS
from csm.kernels import available, quantise_rows, quantise_rows_float8

TOP = Path(__file__).parent.parent
CHECKS = [
    node.name.removeprefix("check_")
    for node in ast.parse((TOP / "tests" / "kernel_checks.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


CASES = [
    ("bfloat16", 1, 90, False),
    ("bfloat16", 64, 90, False),
    ("int8", 1, 90, False),
    ("float8", 64, 90, False),
    ("bfloat16", 1, 90, True),
    ("bfloat16", 4, 80, False),
]  # weights, slots, compute capability, depth decoder in one launch
COMPILED = """
import dataclasses, json, sys
from csm.config import PRESETS
from csm.kernels.compiled import GPUS, compile_frame

preset = PRESETS[sys.argv[1]]
config = dataclasses.replace(  # its kernels, but few launches
    preset,
    backbone=dataclasses.replace(preset.backbone, layers=1),
    decoder=dataclasses.replace(preset.decoder, layers=1),
    codec=dataclasses.replace(preset.codec, num_codebooks=4),
)
for weights, slots, gpu, in_one in json.loads(sys.argv[2]):
    for made, times in compile_frame(config, weights, slots, gpu, in_one).items():
        figures = dataclasses.asdict(made) | {"times": times, "at_once": made.at_once, "most": GPUS[gpu][1] << 10}
        print(json.dumps(figures | {"case": f"{weights}, {slots} slots, {gpu}, in one {in_one}"}))
"""


def started(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A Python of its own: Triton must be told what it works for before it is imported."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=TOP,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compiling(preset: str) -> subprocess.Popen[str]:
    return started("-c", COMPILED, preset, json.dumps(CASES))


def compiled(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What was made: nothing that a GPU would refuse, and no registers that had to be kept in memory."""
    said, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors
    made = [json.loads(line) for line in said.splitlines()]
    assert {kernel["name"] for kernel in made} == {
        "pair_kernel", "single_kernel", "attention_kernel", "choose_kernel", "embed_kernel", "finish_kernel",
        "depth_kernel",
    }  # fmt: skip
    for kernel in made:
        assert kernel["spills"] == 0 and kernel["at_once"] >= 1, kernel
        assert kernel["shared"] <= kernel["most"], kernel
        if kernel["gpu"] >= 90 and kernel["name"] != "depth_kernel":  # it overlaps with the one before it
            assert kernel["early_loads"] is not None and kernel["early_stores"] == 0, kernel
    return made


@pytest.fixture(scope="module")
def processes() -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """The interpreter's checks and the compiler, side by side: each keeps one core busy."""
    both = started("-m", "tests.kernel_checks", TRITON_INTERPRET="1"), compiling("tiny")
    yield both
    for process in both:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def interpreted(processes) -> dict[str, str | None]:
    """What each check of tests/kernel_checks.py says under the interpreter."""
    said, errors = processes[0].communicate(timeout=1800)
    assert processes[0].returncode == 0, errors
    return json.loads(said.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_gives_what_plain_torch_gives(interpreted, check):
    assert interpreted[check] is None, interpreted[check]


@needs_triton
def test_every_kernel_compiles_for_gpus_that_are_not_here(processes):
    """CSM-1B's."""
    made = compiled(processes[1])
    one_row = [kernel for kernel in made if kernel["case"] == "bfloat16, 1 slots, 90, in one False"]
    assert sum(kernel["times"] for kernel in one_row) == 3 + 3 * (5 + 2) + (5 + 2)
    of_many_programs = [kernel for kernel in one_row if kernel["programs"] > 256]  # products: weights come early
    assert len(of_many_programs) >= 9 and all(kernel["early_loads"] >= 4 for kernel in of_many_programs)


@needs_triton
@pytest.mark.slow
def test_the_kernels_of_the_published_8b_compile_too():
    """64 wide heads in a decoder of 24 and 6, and widths that are no powers of two: 1 536, 6 912, 14 336."""
    compiled(compiling("medium"))


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device")
@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_gives_what_plain_torch_gives_on_a_gpu(check):
    from tests import kernel_checks

    kernel_checks.CHECKS[check]("cuda")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device")
@pytest.mark.parametrize("slots", [1, 3])
def test_kernels_that_overlap_give_what_they_give_one_after_the_other_on_a_gpu(slots):
    """To the last bit, frame after frame: one that read before its turn would soon differ."""
    from csm.kernels.frame import FrameKernels, KernelWeights
    from csm.kernels.processor import Processor
    from csm.model import CSM

    config = dataclasses.replace(
        PRESETS["tiny"],
        backbone=dataclasses.replace(PRESETS["tiny"].backbone, layers=4),
        text_vocab_size=16,
        max_positions=128,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        weights = KernelWeights(CSM(config).init_weights().bfloat16().eval())
        processor = Processor.of(torch.device("cuda"))
        said = []
        for overlap in (processor.overlap, False):
            kernels = FrameKernels(weights, slots, 128, processor=dataclasses.replace(processor, overlap=overlap))
            noise = torch.Generator("cuda").manual_seed(1)
            state = torch.randn(slots, config.backbone.dim, generator=noise).bfloat16()
            lengths, active = torch.zeros(slots, dtype=torch.int64), torch.ones(slots, dtype=torch.bool)
            frames = []
            with torch.inference_mode():
                for _ in range(100):
                    codes = torch.zeros(slots, config.num_codebooks, dtype=torch.int64)
                    draws = torch.empty(slots, config.num_codebooks, config.audio_vocab_size)
                    kernels.step(state, draws.exponential_(generator=noise), codes, lengths, active)
                    frames.append((codes, state.clone()))
            said.append(frames)
    for (codes, state), (their_codes, their_state) in zip(*said, strict=True):
        assert torch.equal(codes, their_codes) and torch.equal(state, their_state)


@pytest.mark.parametrize("quantise, worst", [(quantise_rows, 0.5 / 127), (quantise_rows_float8, 0.04)])
def test_eight_bits_stay_within_half_a_step_of_the_weight(quantise, worst):
    weight = torch.randn(7, 33) * torch.logspace(-4, 2, 7)[:, None]
    weight[3] = 0
    data, scale = quantise(weight)
    assert data.element_size() == 1 and scale.shape == (7,) and (data[3].float() == 0).all()
    error = (data.float() * scale[:, None] - weight).abs().amax(1)
    assert (error <= weight.abs().amax(1) * worst * 1.001).all()


def test_the_kernels_are_for_gpus_only():
    assert not available(torch.device("cpu"))


@needs_triton
@pytest.mark.parametrize("weights", ["int4", ""])
def test_an_unknown_weight_format_is_refused_in_one_sentence(weights):
    """The refusal comes before any kernel is built, so it needs no interpreter."""
    from csm.errors import InputError
    from csm.kernels.stack import check_format

    with pytest.raises(InputError, match="choose one of bfloat16, int8, float8"):
        check_format(weights, torch.device("cpu"))


@needs_triton
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("shared", [96 << 10, 219 << 10])
def test_the_loads_under_way_fit_into_a_multiprocessor_for_any_number_of_streams(shared, width):
    """CSM-1B's products; what doesn't fit would only be refused by the device."""
    from csm.kernels.stack import Blocks

    for rows in (2, 4, 16, 32, 64, 128):
        for pairs, n, k in ((True, 1_536, 2_048), (True, 8_192, 2_048), (True, 8_192, 1_024), (False, 2_048, 8_192)):
            blocks = Blocks.choose(rows, n, k, pairs, width, shared)
            tiles = blocks.k * ((1 + pairs) * blocks.n + blocks.rows)
            assert blocks.stages >= 2 and blocks.stages * tiles * width <= shared and blocks.k >= 16
    assert Blocks.choose(16, 8_192, 2_048, True, 2, 219 << 10).k == 256
