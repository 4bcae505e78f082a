"""What the kernels must know of the device that they run on, and the one place where they are launched.

A frame is a chain of some hundred short kernels, each of which needs what the one before it wrote. On Hopper and later
they overlap: a kernel lets the next one begin at once, which asks for its weights and only then waits until all that
was written before it can be seen (programmatic dependent launch). So memory doesn't rest between two kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LEAST_SHARED = 96 << 10  # bytes that a program may have on every GPU with bfloat16; an H200 has 227 KB
KEPT_BACK = 8 << 10  # bytes for sums over threads


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """From here on the next kernel may begin; what it reads of this one's it waits for."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Everything that earlier kernels wrote is there. Every program must come by, and before it may only load what no
    kernel writes."""
    if OVERLAP:
        gdc_wait()


@dataclass(frozen=True)
class Processor:
    """`multiprocessors` programs run at the same time at least, and stages of loads may take `shared` bytes of each
    one's own memory. `emulated`: by Triton's interpreter, on the CPU. `overlap`: kernels may begin early."""

    multiprocessors: int
    shared: int
    emulated: bool = False
    overlap: bool = False

    @classmethod
    def of(cls, device: torch.device) -> Processor:
        if device.type == "cpu":  # the interpreter has no limit, should do what small GPUs do, and has one thread
            return cls(1, LEAST_SHARED, emulated=True)
        properties: Any = torch.cuda.get_device_properties(device)
        shared = properties.shared_memory_per_block_optin - KEPT_BACK
        return cls(properties.multi_processor_count, shared, overlap=properties.major >= 9)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, overlap: bool = True, **options: Any) -> None:
        """Run as many programs of `kernel`. One that has no `overlap` begins when all before it has ended."""
        if overlap:
            options |= {"OVERLAP": self.overlap, "launch_pdl": self.overlap}
        self._start(kernel, grid, arguments, options)

    def _start(self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        kernel[grid](*arguments, **options)
