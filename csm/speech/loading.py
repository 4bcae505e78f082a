"""From a model's name to a `Generator`: which model, on which device, in which precision."""

from __future__ import annotations

import warnings

import torch

from csm.checkpoint import HUB_MODEL, load_model
from csm.config import Environment
from csm.errors import InputError
from csm.model.packed import PackedCSM, in_precision, reading_precision, rounded_by_kernels, usual_packing
from csm.speech.generator import Generator


def usable_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CSM_DEVICE, else an accelerator if there is one, else the CPU.

    Raises `InputError` for one that is not there."""
    if device == "auto":
        device = Environment.read().device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {device!r} is not available here: use cpu, or auto.") from error
    return target


def load(
    model: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    adapter: str | None = None,
    weights: str | None = None,
) -> Generator:
    """Load a model: a preset, a local folder or weight file, or a hub id such as "sesame/csm-1b".

    `device` is as `usable_device` takes it. Without `model`, CSM_MODEL decides, else the accelerator: the published 1B
    model with one, the embedded nano without (and when the published one can't be had, after a warning that says why).
    `dtype` is the published models' precision: float32 on the CPU and bfloat16 elsewhere unless it is given; given, the
    model is left as it is published. `adapter` is a PEFT adapter to merge, a folder or a hub id.
    `weights` (or CSM_WEIGHTS) is the precision of any model's matrices: float32, bfloat16, on a CPU float16, int8 or
    int4, and on CUDA int8 or float8. On a CPU they are packed, and all around them is float32; a model that is stored
    in float16, as nano is, keeps its weights so, and so does one that was packed before (`csm convert --weights`).
    Raises `InputError` in one sentence.
    """
    environment, target = Environment.read(), usable_device(device)
    weights = weights or environment.weights
    as_published = target.type != "cpu" or dtype is not None
    dtype = reading_precision(weights, dtype, target)

    def build(name: str) -> Generator:
        loaded = load_model(name, dtype, adapter, packed_too=target.type == "cpu")
        if weights and rounded_by_kernels(weights, target):
            return Generator(loaded, target, weights)
        usual = None if as_published else usual_packing(loaded.stored)
        if weights or not isinstance(loaded.model, PackedCSM):  # some come packed
            loaded.model = in_precision(loaded.model, weights or usual)
        return Generator(loaded, target)

    name = model or environment.model
    if name:
        return build(name)
    if target.type != "cpu":
        try:
            return build(HUB_MODEL)
        except InputError as error:
            warnings.warn(f"{error} The embedded nano speaks instead.", stacklevel=2)
    return build("nano")
