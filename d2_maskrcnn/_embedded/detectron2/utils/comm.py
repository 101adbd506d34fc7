"""Talk between the processes of a training. Everything works in a single process too, and with gloo as with nccl."""

from __future__ import annotations  # a PyTorch without `distributed` has no ProcessGroup

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# The processes on this machine, once `create_local_process_group` has been called.
_local_group: Any = None
_MISSING_LOCAL_GROUP = (
    "The processes of this machine are not known: call comm.create_local_process_group(processes_per_machine) after "
    "torch.distributed.init_process_group, as detectron2.engine.launch does"
)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes of all machines."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this is the process (rank 0) that logs and writes files."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Tells which processes share a machine. All processes must call it, with the same number.

    Args:
        num_workers_per_machine: processes on each machine; ranks count through the first machine, then the second,
            and so on.

    Raises:
        ValueError: the number of processes is no multiple of it.
        RuntimeError: it has been called before.
    """
    global _local_group
    if _local_group is not None:
        raise RuntimeError("The local process group has been created already")
    if get_world_size() % num_workers_per_machine:
        raise ValueError(f"{get_world_size()} processes cannot be {num_workers_per_machine} on each machine")
    for machine in range(get_world_size() // num_workers_per_machine):
        start = machine * num_workers_per_machine
        # Creating a group is a joint act: every process takes part in every group's, its own or not.
        group = dist.new_group(list(range(start, start + num_workers_per_machine)))
        if start <= get_rank() < start + num_workers_per_machine:
            _local_group = group


def destroy_process_groups() -> None:
    """Ends all groups, those that this module remembers included: their threads go on as long as anything refers to
    them, and one that still holds a tensor when the interpreter is taken apart aborts the process.
    """
    global _local_group
    dist.destroy_process_group()
    _local_group = None
    _gloo_group.cache_clear()


def get_local_process_group() -> dist.ProcessGroup:
    """The group of this machine's processes.

    Raises:
        RuntimeError: :func:`create_local_process_group` has not been called.
    """
    if _local_group is None:
        raise RuntimeError(_MISSING_LOCAL_GROUP)
    return _local_group


def get_local_rank() -> int:
    """Number of this process among those of its machine, from 0. RuntimeError where that is not known."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine. RuntimeError where that is not known."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def synchronize() -> None:
    """Waits until all processes have come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _gloo_group() -> dist.ProcessGroup:
    """All processes, over gloo: Python objects need not go through a GPU's memory."""
    if dist.get_backend() == dist.Backend.NCCL:
        group: Any = dist.new_group(backend="gloo")
        return group
    world = dist.group.WORLD
    assert world is not None
    return world


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Hands any picklable object to all processes.

    Args:
        data: this process's object.
        group: the processes that take part; None: all.

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
    """Hands any picklable object to one process.

    Args:
        data: this process's object.
        dst: rank (among all processes) of the one that gets them.
        group: the processes that take part; None: all.

    Returns:
        The objects of all of them by rank, on ``dst``; an empty list elsewhere.
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
    """A random number in [0, 2**31) that is the same in all processes, from the main process's NumPy generator."""
    return all_gather(int(np.random.randint(2**31)))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Adds up scalar tensors over all processes.

    Args:
        input_dict: 0-dimensional tensors; all processes need the same keys.
        average: whether the sums are divided by the number of processes.

    Returns:
        The same keys. Only the main process's values mean something.
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
