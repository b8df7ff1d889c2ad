"""Several processes that train one network together, as torchrun starts them; alone, nothing changes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sam3dnet.errors import PlanError

# Validation cases take as long as they take, and not all processes have the same number of them.
PATIENCE = timedelta(hours=2)
GREAT_PATIENCE = timedelta(days=14)  # one process may label and preprocess many images while the others wait


@contextmanager
def joined_processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of the same torchrun, over nccl on CUDA cards and over gloo on CPUs.

    Args:
        device: Where to train.

    Yields:
        This process's own device: on CUDA the card of its number on this machine.

    Raises:
        PlanError: If several processes were started for a device that cannot work together.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield device
        return
    if device.type not in ("cpu", "cuda"):
        raise PlanError(f"--device {device.type}: several processes train together on cpu or cuda; start one alone")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def are_joined() -> bool:
    """Tell whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized()


def is_first_process() -> bool:
    """Tell whether this process is alone, or the one that writes the files."""
    return not are_joined() or dist.get_rank() == 0


@contextmanager
def unhurried_meetings() -> Iterator[Callable[[Any], list[Any]]]:
    """Give what gathers values as `gathered` does, from processes of which some may need days.

    All processes have to come here at about the same time.
    """
    if not are_joined():
        yield gathered
        return
    group = dist.new_group(backend="gloo", timeout=GREAT_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # all processes are in it

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=group)
        return values

    try:
        yield gather
    finally:
        dist.destroy_process_group(group)


def place_among_processes() -> tuple[int, int]:
    """Tell how many processes train together, and the number of this one."""
    return (dist.get_world_size(), dist.get_rank()) if are_joined() else (1, 0)


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do something, such as a download, before the others find it done."""
    if not is_first_process():
        dist.barrier()
    yield
    if are_joined() and is_first_process():
        dist.barrier()


def agreed(value: float, device: torch.device) -> float:
    """Give all processes the first one's number, so that a clock leads to one decision."""
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(number, 0)
    return float(number)


def gathered(value: Any) -> list[Any]:
    """Give the values of all processes; alone, a list of one."""
    if not are_joined():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def share_of_batch(batch_size: int, global_batch_size: int) -> float:
    """Give the weight of this process's mean loss in the mean over processes, so that every image counts the same."""
    return dist.get_world_size() * batch_size / global_batch_size if are_joined() else 1.0


def check_batch_size(global_batch_size: int) -> None:
    """Refuse more processes than a batch has images.

    Raises:
        PlanError: If some process would have none.
    """
    if are_joined() and dist.get_world_size() > global_batch_size:
        raise PlanError(
            f"{dist.get_world_size()} processes for a batch of {global_batch_size}: each needs an image; start fewer "
            "processes, or plan with more memory (-gpu_memory_target)"
        )


def wrapped(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Average the gradients of all processes; the weights of the first are those of all."""
    # Our buffers never change; to send them before each forward would stall where processes have unequal numbers of
    # windows to predict.
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)
