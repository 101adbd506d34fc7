"""Count on a CPU how often a training step would wait for a GPU."""

import contextlib
import traceback

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from d2_maskrcnn import compat
from d2_maskrcnn.modeling.rpn import proposals
from detectron2.utils.events import EventStorage

aten = torch.ops.aten
# The size of the result, or a number for Python, depends on values that are on the device.
WAITING = (aten._local_scalar_dense, aten.equal, aten.masked_select, aten.nonzero, aten._unique2, aten.unique_dim)
COPIES = (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__array__)
BITMASKS = ("INPUT.MASK_FORMAT", "bitmask")


class CountWaits(TorchDispatchMode):
    """List the lines at which a GPU would be waited for, inside the context."""

    def __init__(self):
        super().__init__()
        self.lines, self.is_paused, self.copies = [], False, _CountCopies(self)

    def __enter__(self):
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in WAITING or self._needs_indices(func, args):
            self.add(func)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _needs_indices(func, args):
        if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            return False
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        fills = func.overloadpacket is not aten.index and args[2].numel() == 1  # as masked_fill does
        return bool(masks) and not fills

    def add(self, func):
        if not self.is_paused:
            frames = [frame for frame in traceback.extract_stack() if "/d2_maskrcnn/" in frame.filename]
            self.lines.append(f"{func}: {frames[-1].filename}:{frames[-1].lineno}" if frames else str(func))

    @contextlib.contextmanager
    def paused(self):
        before, self.is_paused = self.is_paused, True
        yield
        self.is_paused = before


class _CountCopies(TorchFunctionMode):
    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPIES:
            self.counter.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        (lambda x, mask: x * 2, 0),
        (lambda x, mask: x[torch.tensor([0, 1])], 0),
        (lambda x, mask: x.masked_fill(mask, 0.0), 0),
        (lambda x, mask: x.__setitem__(mask, 0.0), 0),
        (lambda x, mask: x.index_fill_(0, torch.tensor([0]), 1.0), 0),
        (lambda x, mask: x.__setitem__(mask, torch.ones(2)), 1),
        (lambda x, mask: x[mask], 1),
        (lambda x, mask: mask.nonzero(), 1),
        (lambda x, mask: float(x.sum()), 1),
        (lambda x, mask: bool(mask.any()), 1),
        (lambda x, mask: x.tolist(), 1),
        (lambda x, mask: x.unique(), 1),
    ],
)
def test_what_is_counted(operation, number):
    with CountWaits() as waits:
        operation(torch.zeros(3), torch.tensor([True, False, True]))
    assert len(waits.lines) == number, waits.lines


@pytest.mark.parametrize("images", [2, 4])
def test_a_step_waits_six_times_and_once_per_image(trainer_of, monkeypatch, images):
    """Anchors, proposals, regions, foreground, losses, gradient norm; and the suppression of each image's proposals."""
    waits = CountWaits()

    def suppress(*args):  # counted as one: on a CPU it is another algorithm
        waits.add("batched_nms")
        with waits.paused():
            return original(*args)

    def write_losses(*args):  # they are numbers on the CPU by then
        with waits.paused():
            write(*args)

    original, write = proposals.batched_nms, compat.write_losses
    monkeypatch.setattr(proposals, "batched_nms", suppress)
    monkeypatch.setattr(compat, "write_losses", write_losses)
    step = trainer_of("SOLVER.IMS_PER_BATCH", images, *BITMASKS).train_step
    batch = step.read_batch()
    monkeypatch.setattr(step, "read_batch", lambda: batch)
    step.iter = 0
    with EventStorage() as storage, waits:
        step.run_step()
    assert storage.latest()["fast_rcnn/fg_cls_accuracy"] and storage.latest()["loss_mask"][0] > 0
    assert len(waits.lines) == 6 + images, "\n".join(waits.lines)
