"""Small weight files with the parameter names of other programs, written when the tests run."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.models.resnet import Bottleneck, ResNet

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTH = 8


def _layers(depth, width):
    """Yield the name in this ResNet, the Caffe2 names, and the shape of every convolution, at a small width."""
    yield "stem.conv1", ("conv1", "res_conv1"), (width, 3, 7, 7)
    before = width
    for stage, count in enumerate(BLOCKS[depth], start=2):
        inner, after = width * 2 ** (stage - 2), width * 2**stage
        for block in range(count):
            ours, caffe2 = f"res{stage}.{block}", f"res{stage}_{block}_branch"
            if block == 0:
                yield f"{ours}.shortcut", (f"{caffe2}1",) * 2, (after, before, 1, 1)
            yield f"{ours}.conv1", (f"{caffe2}2a",) * 2, (inner, before, 1, 1)
            yield f"{ours}.conv2", (f"{caffe2}2b",) * 2, (inner, inner, 3, 3)
            yield f"{ours}.conv3", (f"{caffe2}2c",) * 2, (after, inner, 1, 1)
            before = after


@pytest.fixture(scope="session")
def resnet_shapes():
    """``resnet_shapes(depth)``: name and shape of every tensor of a ResNet in Detectron2's names."""

    def shapes(depth=50, width=WIDTH):
        found = {}
        for name, _, shape in _layers(depth, width):
            found[f"{name}.weight"] = shape
            for part in ("weight", "bias", "running_mean", "running_var"):
                found[f"{name}.norm.{part}"] = shape[:1]
        return found

    return shapes


@pytest.fixture(scope="session")
def msra_blobs():
    """``msra_blobs(depth)``: the blobs of an MSRA ImageNet file, and the name in this ResNet of each."""

    def blobs(depth=50, width=WIDTH):
        state, names = {}, {}
        rng = np.random.default_rng(depth)
        for name, (conv, norm), shape in _layers(depth, width):
            for blob, ours, size in (
                (f"{conv}_w", f"{name}.weight", shape),
                (f"{norm}_bn_s", f"{name}.norm.weight", shape[:1]),
                (f"{norm}_bn_b", f"{name}.norm.bias", shape[:1]),
            ):
                names[blob] = ours
                state[blob] = rng.standard_normal(size, dtype=np.float32)
        state["fc1000_w"], state["fc1000_b"] = np.ones((10, 4), np.float32), np.ones(10, np.float32)
        return state, names

    return blobs


@pytest.fixture(scope="session")
def torchvision_state():
    """``torchvision_state(depth)``: the state dict of torchvision's own ResNet, at a small width."""

    def state(depth=50, width=WIDTH):
        class Narrow(ResNet):
            def __init__(self):
                super().__init__(Bottleneck, [1, 1, 1, 1], num_classes=10)
                self.inplanes, stages = width, BLOCKS[depth]
                self.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
                self.bn1 = torch.nn.BatchNorm2d(width)
                for stage, count in enumerate(stages, start=1):
                    planes = width * 2 ** (stage - 1)
                    setattr(self, f"layer{stage}", self._make_layer(Bottleneck, planes, count, 1 + (stage > 1)))

        return Narrow().state_dict()

    return state


@pytest.fixture
def msra_file(tmp_path, msra_blobs):
    """``msra_file(depth)``: the path of an MSRA pickle as Python 3 writes it for Python 2."""

    def write(depth=50, width=WIDTH):
        path = tmp_path / f"R-{depth}.pkl"
        path.write_bytes(pickle.dumps(msra_blobs(depth, width)[0], 2))
        return path

    return write


@pytest.fixture
def write_pickle(tmp_path):
    """``write_pickle(content)``: write bytes, or the pickle of an object, to a file."""

    def write(content, protocol=2):
        path = tmp_path / "weights.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return write
