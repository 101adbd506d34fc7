import random
import runpy
import sys

import numpy as np
import pytest
import torch

import detectron2
from detectron2.structures import Boxes, Instances
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.develop import create_dummy_class, create_dummy_func
from detectron2.utils.env import TORCH_VERSION, seed_all_rng, setup_environment
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.testing import assert_instances_allclose, min_torch_version, random_boxes


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
def test_same_seed_same_numbers(seed):
    seed_all_rng(seed)
    first = draw()
    seed_all_rng(seed)
    assert draw() == first
    seed_all_rng(seed + 1)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_random_seed():
    seed_all_rng()
    first = draw()
    seed_all_rng()
    assert draw() != first
    with pytest.raises(ValueError, match="-1"):
        seed_all_rng(-1)


def test_torch_version():
    assert torch.__version__.startswith(".".join(map(str, TORCH_VERSION)))
    assert TORCH_VERSION >= (2, 6)


def test_setup_environment_keeps_opencv_to_one_thread():
    cv2 = pytest.importorskip("cv2")
    setup_environment()
    setup_environment()
    assert cv2.getNumThreads() == 1
    assert not cv2.ocl.useOpenCL()


@pytest.mark.parametrize("item", ["Platform", "Python", "PyTorch", "GPU", "numpy", "torchvision", "pillow", "cv2"])
def test_environment_table(item):
    lines = collect_env_info().splitlines()
    assert any(line.startswith(item) and len(line.split()) > 1 for line in lines)
    assert any(detectron2.__version__ in line for line in lines)


def test_environment_table_as_a_program(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "detectron2.utils.collect_env")
    runpy.run_module("detectron2.utils.collect_env", run_name="__main__")
    assert torch.__version__ in capsys.readouterr().out


class TestRetry:
    def test_no_error(self):
        assert retry_if_cuda_oom(lambda a, b=0: a + b)(1, b=2) == 3

    @pytest.mark.parametrize(("failures", "calls"), [(1, 2), (2, 3)])
    def test_out_of_memory(self, failures, calls):
        seen = []

        def hungry(tensor, *, scale):
            seen.append(tensor)
            if len(seen) <= failures:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return tensor * scale

        assert retry_if_cuda_oom(hungry)(torch.ones(2), scale=3).tolist() == [3.0, 3.0]
        assert len(seen) == calls

    def test_other_errors_pass(self):
        def wrong():
            raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            retry_if_cuda_oom(wrong)()


def test_placeholders_name_the_missing_dependency():
    dummy = create_dummy_class("Fast", "fastlib", "Install it.")
    for use in (dummy, lambda: dummy.run, create_dummy_func("quick", ["fastlib", "c"])):
        with pytest.raises(ImportError, match=r"(Fast|quick) needs fastlib"):
            use()


def test_instances_are_compared_field_by_field():
    def instances(**changes):
        fields = {"scores": torch.tensor([0.5, 0.25]), "pred_boxes": Boxes(torch.eye(2, 4)), **changes}
        return Instances((4, 5), **fields)

    assert_instances_allclose(instances(), instances())
    for changes, message in (
        ({"scores": torch.tensor([0.5, 0.26])}, "scores differs"),
        ({"pred_boxes": Boxes(torch.eye(2, 4) * 2)}, "pred_boxes differs"),
        ({"extra": [1, 2]}, "fields"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_instances_allclose(instances(), instances(**changes))
    with pytest.raises(AssertionError, match="image_size"):
        assert_instances_allclose(instances(), Instances((5, 4)))


def test_random_boxes_are_inside_and_not_empty():
    boxes = Boxes(random_boxes(100, max_coord=20))
    assert len(boxes) == 100
    assert boxes.nonempty().all()
    assert boxes.inside_box((20, 20), 1).all()


@pytest.mark.parametrize(("version", "expected"), [("1.8", True), ("2.0", True), ("99.0", False)])
def test_least_version_of_pytorch(version, expected):
    assert min_torch_version(version) == expected
