import pytest
import torch
import yaml

from d2_maskrcnn.engine.plan_file import TrainingOptions, write_plan


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("proposal_generator.rpn_head.conv.weight", 0.002 / 4),
        ("backbone.bottom_up.stem.conv1.weight", 0.002),  # such as those trained on ImageNet
    ],
)
def test_weights_of_a_detector_are_fine_tuned_with_a_lower_rate(tiny_shapes, tmp_path, name, rate):
    weights, path = tmp_path / "weights.pth", tmp_path / "plan.yaml"
    torch.save({"model": {name: torch.zeros(1)}}, weights)
    options = TrainingOptions(tiny_shapes, config="quickstart", weights=str(weights), batch_size=8)
    write_plan(options, path)
    assert yaml.safe_load(path.read_text())["SOLVER"]["BASE_LR"] == pytest.approx(rate)
