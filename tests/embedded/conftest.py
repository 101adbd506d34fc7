"""Tests of the embedded engine; not collected if an installed Detectron2 is in use."""

import multiprocessing

import pytest
import torch.multiprocessing as mp

import d2_maskrcnn

collect_ignore_glob = [] if d2_maskrcnn.engine_info().name == "embedded" else ["*"]


@pytest.fixture(scope="session")
def run_processes():
    """``run_processes(function, nprocs, *args)`` calls ``function(rank, *args)`` in new processes and waits."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "forkserver":  # imports what takes long once, not in each process
        multiprocessing.get_context(method).set_forkserver_preload(["torch", "torchvision"])

    def run(function, nprocs, *args):
        mp.start_processes(function, args=args, nprocs=nprocs, start_method=method)

    return run
