import gc
import threading

import pytest
import torch

from d2_maskrcnn.ops.roi_align import memory

LIKE = torch.zeros(1, dtype=torch.bfloat16)
WIDTH = 1 << 19  # elements of a MB


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(memory, "_store", memory.Store())


@pytest.mark.parametrize("make", [memory.empty_buffer, memory.zero_buffer])
@pytest.mark.parametrize("megabytes", [0, 1, 40])
def test_buffers(make, megabytes):
    buffer = make((megabytes, WIDTH), LIKE)
    assert (buffer.dtype, buffer.shape, buffer.is_contiguous()) == (torch.bfloat16, (megabytes, WIDTH), True)
    assert megabytes == 0 or buffer.data_ptr() % 64 == 0
    assert buffer.fill_(1.0).sum(dtype=torch.float32) == megabytes * WIDTH


@pytest.mark.parametrize("megabytes", [0, 1, 40])
def test_reused_memory_is_zeroed(megabytes):
    for _ in range(2):
        buffer = memory.zero_buffer((megabytes, WIDTH), LIKE)
        assert buffer.count_nonzero() == 0
        buffer.fill_(1.0)
        del buffer


def test_unused_memory_is_reused():
    buffer = memory.empty_buffer((40, WIDTH), LIKE)
    address, view = buffer.data_ptr(), buffer[3:4].view(torch.int16)
    del buffer
    other = memory.empty_buffer((40, WIDTH), LIKE)
    assert other.data_ptr() != address  # the view still uses it
    del view
    again = memory.zero_buffer((30, WIDTH), LIKE)
    assert again.data_ptr() == address
    assert again.untyped_storage().nbytes() == 30 << 20  # what torch.save would write


def test_memory_of_twice_the_size_is_not_reused():
    address = memory.empty_buffer((40, WIDTH), LIKE).data_ptr()
    smaller = memory.empty_buffer((19, WIDTH), LIKE)
    assert smaller.data_ptr() != address
    assert memory.empty_buffer((20, WIDTH), LIKE).data_ptr() == address


def test_unused_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(memory, "MAX_KEPT_BYTES", 100 << 20)
    buffers = [memory.empty_buffer((40, WIDTH), LIKE) for _ in range(3)]
    addresses = [buffer.data_ptr() for buffer in buffers]
    for _ in range(3):
        del buffers[0]  # the first is freed when the third is kept
    taken = [memory._store.take(40 << 20) for _ in range(3)]
    assert [part.ctypes.data for part in taken[:2]] == addresses[1:] and taken[2] is None


def test_threads_never_share_a_buffer():
    def work():
        for value in range(20):
            buffer = memory.empty_buffer((8, WIDTH), LIKE).fill_(value)
            wrong.append(int((buffer != value).sum()))

    wrong = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80 and not any(wrong)


def test_unused_memory_is_freed_and_buffers_in_use_stay():
    memory.free_unused_buffers()
    used, unused = (memory.empty_buffer((40, WIDTH), LIKE).fill_(1.0) for _ in range(2))
    del unused
    assert memory._store._unused
    memory.free_unused_buffers()
    assert not memory._store._unused
    assert used.sum(dtype=torch.float32) == 40 * WIDTH


def test_gradients_flow_through_buffers_and_free_them():
    weight = torch.ones(WIDTH, requires_grad=True)
    buffer = memory.empty_buffer((16, WIDTH), torch.zeros(1)).fill_(1.0)
    address = buffer.data_ptr()
    (buffer * weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((WIDTH,), 16.0))
    del buffer
    gc.collect()
    assert memory.empty_buffer((16, WIDTH), torch.zeros(1)).data_ptr() == address


def test_without_huge_pages(monkeypatch):
    monkeypatch.setattr(memory, "_madvise", None)
    assert memory.empty_buffer((40, WIDTH), LIKE).shape == (40, WIDTH)
