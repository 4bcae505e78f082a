"""One process or several under `torchrun`: who writes, what is added up, and the model sharded by FSDP2.

Everything here does nothing on one process, so the training loop reads the same either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from csm.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in every one of them."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def alike(self, value: int) -> bool:
        """Whether all processes have the same whole number; all of them must ask."""
        if self.count == 1:
            return True
        ends = torch.tensor([value, -value], device=self.device)
        torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        return bool(ends[0] == -ends[1])

    def wait(self) -> None:
        """Go on when all are here."""
        if self.count > 1:
            torch.distributed.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """The processes that `torchrun` started, joined for the length of the block; without it, this one alone.

    `device` is cpu, cuda or auto; several processes talk through gloo on the CPU and nccl on GPUs. Raises `InputError`
    for a device that isn't there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no GPU that this PyTorch can use: choose --device cpu.")
    cuda = device != "cpu" and torch.cuda.is_available()
    if not torch.distributed.is_torchelastic_launched():
        yield Processes(device=torch.device("cuda" if cuda else "cpu"))
        return
    place = torch.device("cuda", torch.distributed.get_node_local_rank()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), place)
    finally:
        torch.distributed.destroy_process_group()


def shard(model: nn.Module, layers: list[nn.Module], together: Processes) -> None:
    """Give every process its part of each parameter (FSDP2): `layers` are gathered one at a time, and what is left
    of `model`, whose `forward` must be the one that is called, stays whole from its start to its end."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(together.device.type, (together.count,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def whole(value: Any) -> Any:
    """The same nested state with every sharded tensor put together; all processes must call it alike."""
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [whole(part) for part in value]
    if isinstance(value, Tensor) and hasattr(value, "full_tensor"):
        return value.full_tensor().cpu()
    return value


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out like `like`: sharded where that is sharded."""
    if not hasattr(like, "device_mesh") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


@torch.no_grad()
def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`load_state_dict` from whole tensors, into a module that may be sharded. Raises `RuntimeError` alike."""
    own = module.state_dict()
    module.load_state_dict({name: placed(t, own[name]) if name in own else t for name, t in state.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` from whole tensors, for parameters that may be sharded. Raises `ValueError` alike."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: placed(value, parameters[number]) if isinstance(value, Tensor) and number < len(parameters) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": moments})
