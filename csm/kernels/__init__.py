"""Triton kernels for one whole frame on a CUDA device: backbone step, depth decoder, sampling, next input.

`csm.kernels.frame.FrameKernels` is the entry; it needs Triton, this package's own import does not. What one frame of
CSM-1B needs at batch 1 (bfloat16, 600 positions of context):

| part | bytes | launches |
|---|---|---|
| backbone, 16 layers of 60.8 M weights | 1.946 GB | 16 x 5 |
| depth decoder, 31 steps x 4 layers of 27.8 M weights | 6.891 GB | 31 x 4 x 5 |
| heads, 32 x 2051 codes | 0.139 GB | 32, and 32 that choose |
| KV cache, 600 positions | 0.020 GB | |
| projection, embedding, last norm | 0.004 GB | 3 |
| in all | 9.00 GB | 767 |

The floor that a frame is measured against is 9.1 GB. The depth decoder reads its first two positions (the backbone's
state and code 0) together, so it runs 31 times, not 32; its inputs come from a table of projected embeddings
(31 x 2051 x 1024 x 2 bytes = 130 MB of memory), which saves 31 products of 4.2 MB and their launches.

Most of the 767 kernels run for less time than it takes to start one. On Hopper and later they overlap (processor.py):
each begins while the one before it ends, asks for its weights, and waits for its inputs only then. In a product of one
row a program asks for all of its weights at once and holds them in registers: 64 to 192 KB of each multiprocessor's
256 KB, 8 to 25 MB in all, are then filled ahead of time. `python -m csm.kernels.compiled` shows what the compiler
makes of it, for a GPU that need not be here (registers, spills, shared memory, loads before the wait). With 1, 4 and 64
conversations everything compiles and fits for compute capability 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0. A frame of one
conversation takes 1.34 million cycles of every scheduler to issue in bfloat16, 1.80 in int8 and 1.41 in float8 (sm_90,
Triton 3.5.1): 0.76, 1.03 and 0.81 ms at 1.755 GHz, beside the 2.1, 1.07 and 1.07 ms that the bytes take at 4.3 TB/s.

With `depth_in_one` the depth decoder is one launch, and a frame has 87, the clearing of a counter among them; the two
positions are then read one after the other, 9.22 GB in all. With weights in eight bits the layers read half: 4.58 GB.
What that costs, over 288 frames of `nano`'s own prompts, as the KL divergence of code 0 from float32: 0.00001 nats with
layers in bfloat16, 0.0002 in int8, 0.003 in float8.
"""

from importlib.util import find_spec

import torch

from csm.kernels.quantise import quantise_rows, quantise_rows_float8

__all__ = ["available", "quantise_rows", "quantise_rows_float8"]


def available(device: torch.device) -> bool:
    """Whether the kernels run on `device`: a CUDA device with bfloat16, and Triton installed."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
