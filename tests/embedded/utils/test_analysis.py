import pytest
import torch
from torch import nn

from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    find_unused_parameters,
    flop_count_operators,
    parameter_count,
)


class Detector(nn.Module):
    """Takes and returns what detectors do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs):
        maps = [self.conv(record["image"][None]) for record in inputs]
        if self.training:
            return {"loss": sum(item.mean() for item in maps)}
        return [{"instances": Instances((8, 8), pred_boxes=Boxes(item.flatten()[:4][None]))} for item in maps]


INPUTS = [{"image": torch.rand(3, 12, 12), "file_name": "a.jpg"}, {"image": torch.rand(3, 12, 7)}]
OUTPUTS = 10 * 10 + 10 * 5  # positions of both images


def test_counts():
    model = Detector()
    assert parameter_count(model)[""] == 3 * 4 * 9 + 6
    assert flop_count_operators(model, INPUTS)["conv"] == pytest.approx(OUTPUTS * 3 * 4 * 9 / 1e9)
    assert activation_count_operators(model, INPUTS)["conv"] == pytest.approx(OUTPUTS * 4 / 1e6)
    assert model.training
    assert FlopCountAnalysis(model.eval(), INPUTS).total() == OUTPUTS * 3 * 4 * 9


def test_unused_parameters():
    model = Detector()
    assert find_unused_parameters(model, INPUTS) == ["unused.weight", "unused.bias"]
    assert model.conv.weight.grad is None
    with pytest.raises(ValueError, match="training mode"):
        find_unused_parameters(model.eval(), INPUTS)
