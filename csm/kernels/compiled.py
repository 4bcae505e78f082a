"""What Triton makes of the kernels of one frame, for a GPU that need not be here: `python -m csm.kernels.compiled`.

A table, one line for each kernel and its blocks: how often a frame launches it, with how many programs, and what each
of them takes. A kernel that a GPU would refuse (too much shared memory), or that the compiler had to help itself with
slow memory for (spills), shows here before anybody waits for it.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from csm.config import PRESETS, ModelConfig
from csm.kernels.frame import FrameKernels, KernelWeights
from csm.kernels.processor import KEPT_BACK, Processor
from csm.kernels.stack import FORMATS
from csm.model.module import CSM

REGISTERS = 65_536  # of a multiprocessor, all kinds below
GPUS = {  # by compute capability: multiprocessors, KB of shared memory of a program and of a multiprocessor, threads
    80: (108, 163, 164, 2_048),  # A100
    86: (84, 99, 100, 1_536),  # RTX 3090
    89: (128, 99, 100, 1_536),  # RTX 4090
    90: (132, 227, 228, 2_048),  # H100, H200
    100: (148, 227, 228, 2_048),  # B200
    120: (170, 99, 100, 1_536),  # RTX 5090
}
MOST_PROGRAMS = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32, 120: 24}  # on a multiprocessor at a time


@dataclass(frozen=True)
class Compiled:
    """One kernel with its blocks, as machine code for compute capability `gpu`. `spills` are instructions that move
    registers to and from memory, `instructions` those of the whole program text, `shared` bytes. Where it waits for
    the kernel before it, `early_loads` come before that, and `early_stores`, which would be an error; else None."""

    name: str
    gpu: int
    programs: int
    warps: int
    registers: int
    spills: int
    shared: int
    instructions: int
    early_loads: int | None
    early_stores: int | None

    @property
    def at_once(self) -> int:
        """Programs that a multiprocessor holds at the same time."""
        _, _, shared, threads = GPUS[self.gpu]
        limits = [MOST_PROGRAMS[self.gpu], threads // (32 * self.warps)]
        limits.append(REGISTERS // (32 * self.warps * -(-self.registers // 8) * 8))
        limits.append((shared << 10) // (self.shared + 1024))  # the system keeps 1 KB for each
        return min(limits)

    def __str__(self) -> str:
        early = "" if self.early_loads is None else f"  {self.early_loads:2} loads before it waits"
        return (
            f"{self.name:16} {self.programs:5} programs of {self.warps} warps, {self.at_once:2} at once  "
            f"{self.registers:3} registers  {self.spills:3} spills  {self.shared / 1024:5.1f} KB shared  "
            f"{self.instructions:5} instructions{early}"
        )


class _Absent:
    """A device to compile for, as Triton's runtime asks for one."""

    def __init__(self, gpu: int) -> None:
        self._target = GPUTarget("cuda", gpu, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch  # what is compiled for one is not taken for another

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@dataclass(frozen=True)
class Compiling(Processor):
    """Compiles what it is given to launch, and remembers how often it was: `launched`, by what was made of it."""

    gpu: int = 90
    launched: dict[Compiled, int] = field(default_factory=dict)
    _made: dict[tuple[int, tuple[int, ...]], Compiled] = field(default_factory=dict)

    @classmethod
    def on(cls, gpu: int) -> Compiling:
        multiprocessors, shared, _, _ = GPUS[gpu]
        return cls(multiprocessors, (shared << 10) - KEPT_BACK, overlap=gpu >= 90, gpu=gpu)

    def _start(self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        code = kernel.warmup(*arguments, grid=grid, **options)
        if (id(code), grid) not in self._made:
            self._made[id(code), grid] = self._read(kernel.fn.__name__, code, math.prod(grid))
        made = self._made[id(code), grid]
        self.launched[made] = self.launched.get(made, 0) + 1

    def _read(self, name: str, code: Any, programs: int) -> Compiled:
        text, registers = disassembled(code.asm["cubin"])
        before, waits, _ = text.partition("ACQBULK")
        return Compiled(
            name,
            self.gpu,
            programs,
            code.metadata.num_warps,
            registers,
            len(re.findall(r"\b(?:LDL|STL)\b", text)),
            code.metadata.shared,
            text.count(";"),
            len(re.findall(r"\bLDG", before)) if waits else None,
            len(re.findall(r"\b(?:STG|RED|ATOM)", before)) if waits else None,
        )


@functools.cache
def disassembled(cubin: bytes) -> tuple[str, int]:
    """The machine code of one kernel as text, and the registers that each of its threads takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = re.search(r"REG:(\d+)", text)
    if registers is None:
        raise RuntimeError("cuobjdump does not say how many registers the kernel takes.")
    return text, int(registers[1])


@torch.inference_mode()
def compile_frame(
    config: ModelConfig, weights: str, slots: int, gpu: int = 90, depth_in_one: bool = False
) -> dict[Compiled, int]:
    """The kernels of one frame of a model in bfloat16, and how often it launches each. No weights exist.

    Afterwards Triton takes this process to be on such a GPU, and can launch nothing in it."""
    triton.runtime.driver.set_active(_Absent(gpu))
    with torch.device("meta"):
        model, processor = CSM(config).bfloat16().eval(), Compiling.on(gpu)
        kernels = FrameKernels(KernelWeights(model, weights), slots, config.max_positions, depth_in_one, processor)
        kernels.step(
            torch.zeros(slots, config.backbone.dim, dtype=torch.bfloat16),
            torch.ones(slots, config.num_codebooks, config.audio_vocab_size),
            torch.zeros(slots, config.num_codebooks, dtype=torch.int64),
            torch.zeros(slots, dtype=torch.int64),
            torch.ones(slots, dtype=torch.bool),
        )
    return processor.launched


def issue_cycles(launched: dict[Compiled, int], gpu: int) -> float:
    """Clock cycles that the schedulers, four to a multiprocessor, need at least to issue a frame's instructions: each
    once for every warp, as if nothing were repeated in a loop."""
    issued = sum(times * made.programs * made.warps * made.instructions for made, times in launched.items())
    return issued / (4 * GPUS[gpu][0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m csm.kernels.compiled", description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--weights", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--gpu", type=int, default=90, choices=sorted(GPUS), help="compute capability, times ten")
    parser.add_argument("--in-one", action="store_true", help="the depth decoder in one launch, for one slot")
    options = parser.parse_args()
    for weights in options.weights:
        for slots in options.slots:
            in_one = options.in_one and slots == 1
            launched = compile_frame(PRESETS[options.preset], weights, slots, options.gpu, in_one)
            cycles = issue_cycles(launched, options.gpu) / 1e6
            print(
                f"{weights}, slots {slots}: {sum(launched.values())} launches, {cycles:.2f} M cycles or more to issue"
            )
            for made, times in launched.items():
                print(f"{times:5} x {made}", flush=True)


if __name__ == "__main__":
    main()
