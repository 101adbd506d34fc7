"""Processes of the model, and the signals that reach them."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from d2_maskrcnn import example
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.run import Sinks, Work, run_images
from d2_maskrcnn.video.sources.images import ImageSource
from d2_maskrcnn.video.workers import WorkerPool
from tests.video.conftest import CLASS_NAMES, MODEL_OPTS


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_process_survives_ctrl_c_while_it_starts(tiny_weights):
    options = [str(x) for pair in MODEL_OPTS.items() for x in pair]
    cfg = load_config("quickstart", [*options, "MODEL.WEIGHTS", str(tiny_weights)])
    others = {process.pid for process in multiprocessing.active_children()}
    interrupted = []

    def interrupt():
        end = time.monotonic() + 60
        while not interrupted and time.monotonic() < end:
            for pid in {process.pid for process in multiprocessing.active_children()} - others:
                os.kill(pid, signal.SIGINT)
                interrupted.append(pid)
            time.sleep(0.005)

    thread = threading.Thread(target=interrupt)
    thread.start()
    pool = WorkerPool(cfg, {"threshold": None}, 1)
    thread.join()
    pool.close()
    assert len(interrupted) == 1 and pool.class_names == CLASS_NAMES


class DyingModel:
    """A model whose process dies; before that, a signal may reach this process."""

    class_names, category_ids = ["a"], [1]

    def __init__(self, number: int | None) -> None:
        self.number = number

    def submit(self, inputs, sizes):
        if self.number is not None:
            before = signal.getsignal(self.number)
            os.kill(os.getpid(), self.number)
            while signal.getsignal(self.number) is before:  # its handler installs another one
                time.sleep(0.005)
        future = Future()
        future.set_exception(BrokenProcessPool())
        return future

    def close(self):
        pass


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "error"), [(None, UserError), (signal.SIGTERM, KeyboardInterrupt), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_process_that_a_signal_ends_is_an_interruption(number, error):
    work = Work(DyingModel(number), np.asarray, ["a"], [1])
    with pytest.raises(error):
        run_images(ImageSource(example.IMAGES), work, Sinks())
