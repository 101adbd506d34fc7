"""Two processes over gloo against one process with both batches."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from detectron2.layers import get_norm
from detectron2.utils import comm

SPLITS = [(0, 4), (3, 1), (2, 2)]  # samples of the two processes


def whole_batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 5, 6, generator=generator) * 3 + 1, torch.randn(4, 3, 5, 6, generator=generator)


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for name in ("naiveSyncBN", "SyncBN"):
        for split in SPLITS:
            torch.manual_seed(1)
            layer = get_norm(name, 3)
            nn.init.uniform_(layer.weight)
            part = slice(0, split[0]) if rank == 0 else slice(split[0], 4)
            x, gradient = (tensor[part] for tensor in whole_batch())
            x.requires_grad_()
            y = layer(x)
            y.backward(gradient)
            weight_gradient = layer.weight.grad.clone()
            dist.all_reduce(weight_gradient)  # as data-parallel training does
            results[name, split] = (y.detach(), x.grad, weight_gradient, layer.running_mean, layer.running_var)
    torch.save(results, f"{folder}/{rank}.pt")
    comm.destroy_process_groups()


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_processes):
    folder = tmp_path_factory.mktemp("sync")
    run_processes(work, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["naiveSyncBN", "SyncBN"])
def test_processes_together_do_what_one_would(results, name, split):
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(3)
    nn.init.uniform_(layer.weight)
    x, gradient = whole_batch()
    x.requires_grad_()
    y = layer(x)
    y.backward(gradient)
    first, second = (result[name, split] for result in results)
    torch.testing.assert_close(torch.cat((first[0], second[0])), y.detach())
    torch.testing.assert_close(torch.cat((first[1], second[1])), x.grad)
    for part in (first, second):
        torch.testing.assert_close(part[2], layer.weight.grad)
        torch.testing.assert_close(part[3], layer.running_mean)
        torch.testing.assert_close(part[4], layer.running_var)
