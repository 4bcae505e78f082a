"""The GPU's kernels: under Triton's interpreter against plain torch; on a GPU, where there is one, as they are."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm.kernels import available, quantise_rows, quantise_rows_float8

TOP = Path(__file__).parent.parent
CHECKS = [
    node.name.removeprefix("check_")
    for node in ast.parse((TOP / "tests" / "kernel_checks.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """What each check of tests/kernel_checks.py says under the interpreter, which must be chosen before the import."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel_checks"],
        cwd=TOP,
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_gives_what_plain_torch_gives(interpreted, check):
    assert interpreted[check] is None, interpreted[check]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device")
@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_gives_what_plain_torch_gives_on_a_gpu(check):
    from tests import kernel_checks

    kernel_checks.CHECKS[check]("cuda")


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
