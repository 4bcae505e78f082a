"""How long one captured frame takes on this GPU: `python -m csm.kernels.measure`, for tuning the kernels' blocks.

Random weights of a preset's shape; the figures that users see come from `python -m csm bench`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch

from csm.config import PRESETS
from csm.kernels.frame import FrameKernels, KernelWeights
from csm.kernels.processor import Processor
from csm.kernels.stack import FORMATS
from csm.model.module import CSM

# Kernels that begin while the one before them ends, where the GPU can do so; one after the other; and the depth decoder
# as a single launch, for one slot.
WAYS = ("overlapping", "in turn", "one launch")


def random_model(preset: str) -> CSM:
    """A CSM of the preset's shape on the GPU in bfloat16, as a training run would begin."""
    with torch.device("cuda"):
        return CSM(PRESETS[preset]).init_weights().bfloat16().eval()


def median_milliseconds(run: Callable[[], None], repeats: int = 50) -> float:
    """Of `repeats` replays of `run` captured as one CUDA graph, after it has run twice as it is."""
    torch.cuda.synchronize()  # what the run reads has been written
    with torch.cuda.stream(torch.cuda.Stream()):
        run()
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[repeats // 2]


@torch.inference_mode()
def measure(weights: KernelWeights, name: str, slots: int, context: int, way: str) -> str:
    """One line: milliseconds of a frame and of its codes, GB/s of weights, times real time over all slots, memory.
    `way` is one of `WAYS`."""
    config = weights.config
    processor = Processor.of(torch.device("cuda"))
    if way == "in turn":
        processor = replace(processor, overlap=False)
    kernels = FrameKernels(weights, slots, config.max_positions, way == "one launch", processor)
    state = torch.randn(slots, config.backbone.dim, device="cuda").bfloat16()
    noise = torch.empty(slots, config.num_codebooks, config.audio_vocab_size, device="cuda").exponential_(1)
    codes = torch.zeros(slots, config.num_codebooks, dtype=torch.int64, device="cuda")
    lengths = torch.full((slots,), context, device="cuda")
    active = torch.ones(slots, dtype=torch.bool, device="cuda")
    frame = median_milliseconds(lambda: kernels.step(state, noise, codes, lengths, active))
    sampling = median_milliseconds(lambda: kernels.sample(state, noise, codes))
    return (
        f"{name:9} {way:11} slots {slots:3}  context {context:5}  "
        f"frame {frame:7.3f} ms (codes {sampling:7.3f})  {weights.frame_bytes / frame / 1e6:6.0f} GB/s  "
        f"{80 / frame * slots:6.1f} x real time  {torch.cuda.memory_allocated() / 1e9:5.2f} GB held"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m csm.kernels.measure", description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--weights", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--context", type=int, default=600, help="positions before the first frame")
    options = parser.parse_args()
    model = random_model(options.preset)
    for name in options.weights:
        weights = KernelWeights(model, name)
        for slots in options.slots:
            for way in WAYS if slots == 1 else WAYS[:2]:
                try:
                    print(measure(weights, name, slots, options.context, way), flush=True)
                except Exception as error:  # the others can still be measured
                    print(f"{name:9} {way:11} slots {slots:3}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
