"""Communication between the processes of a training. All functions work in a single process too."""

from __future__ import annotations  # PyTorch without `distributed` has no ProcessGroup

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# The processes of this machine, set by `create_local_process_group`.
_local_group: Any = None
_MISSING_LOCAL_GROUP = (
    "The processes of this machine are not known: call comm.create_local_process_group(processes_per_machine) after "
    "torch.distributed.init_process_group, as detectron2.engine.launch does"
)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes of all machines."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Return the index of this process among all, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Return whether this process (rank 0) is the one that logs and writes files."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Define which processes share a machine. All processes must call it with the same number.

    Args:
        num_workers_per_machine: processes per machine; ranks are consecutive on each machine.

    Raises:
        ValueError: the number of processes is not a multiple of it.
        RuntimeError: it was called before.
    """
    global _local_group
    if _local_group is not None:
        raise RuntimeError("The local process group exists already")
    if get_world_size() % num_workers_per_machine:
        raise ValueError(f"{get_world_size()} processes cannot be divided into {num_workers_per_machine} per machine")
    for machine in range(get_world_size() // num_workers_per_machine):
        start = machine * num_workers_per_machine
        # Every process must take part in the creation of every group.
        group = dist.new_group(list(range(start, start + num_workers_per_machine)))
        if start <= get_rank() < start + num_workers_per_machine:
            _local_group = group


def destroy_process_groups() -> None:
    """Destroy all groups, including those that this module refers to.

    The threads of a group run as long as anything refers to it, and one that has a tensor when the interpreter exits
    aborts the process.
    """
    global _local_group
    dist.destroy_process_group()
    _local_group = None
    _gloo_group.cache_clear()


def get_local_process_group() -> dist.ProcessGroup:
    """Return the group of the processes of this machine.

    Raises:
        RuntimeError: :func:`create_local_process_group` was not called.
    """
    if _local_group is None:
        raise RuntimeError(_MISSING_LOCAL_GROUP)
    return _local_group


def get_local_rank() -> int:
    """Return the index of this process on its machine, from 0; RuntimeError if that is not known."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Return the number of processes on this machine; RuntimeError if that is not known."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def synchronize() -> None:
    """Wait until all processes have called it."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _gloo_group() -> dist.ProcessGroup:
    """Return the group of all processes over gloo: Python objects need not be copied through GPU memory."""
    if dist.get_backend() == dist.Backend.NCCL:
        group: Any = dist.new_group(backend="gloo")
        return group
    world = dist.group.WORLD
    assert world is not None
    return world


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Send a picklable object to all processes.

    Args:
        data: the object of this process.
        group: the processes that take part; None for all.

    Returns:
        The objects of all of them, by rank.
    """
    if get_world_size() == 1:
        return [data]
    group = _gloo_group() if group is None else group
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Send a picklable object to one process.

    Args:
        data: the object of this process.
        dst: rank, among all processes, of the receiver.
        group: the processes that take part; None for all.

    Returns:
        The objects of all of them by rank in process ``dst``; an empty list elsewhere.
    """
    if get_world_size() == 1:
        return [data]
    group = _gloo_group() if group is None else group
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    gathered: list[Any] | None = [None] * size if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return [] if gathered is None else gathered


def shared_random_seed() -> int:
    """Return a random number in [0, 2**31) from the main process's NumPy generator, the same in all processes."""
    return all_gather(int(np.random.randint(2**31)))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum scalar tensors over all processes.

    Args:
        input_dict: 0-dimensional tensors; all processes need the same keys.
        average: whether the sums are divided by the number of processes.

    Returns:
        The same keys. Only the values in the main process are valid.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and is_main_process():
            values /= world_size
        return dict(zip(names, values, strict=True))
