"""A small model and a state to save and load."""

import torch
from torch import nn


class Heads(nn.Module):
    """The layers of a Mask R-CNN that depend on the number of classes, and one that does not, with their real names."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(4, classes + 1)
        self.roi_heads.box_predictor.bbox_pred = nn.Linear(4, 4 * classes)
        self.roi_heads.mask_head = nn.Module()
        self.roi_heads.mask_head.predictor = nn.Conv2d(4, classes, 1)


class State:
    """A checkpointable that stores a value."""

    def __init__(self, value=None):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def trained(model, **options):
    """Return an optimizer with momentum after one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return optimizer


def copy(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(state, expected):
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
