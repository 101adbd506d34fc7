"""Half precision in inference: what is converted, and what the results differ by."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from d2_maskrcnn import UserError
from d2_maskrcnn.modeling.precision import has_native_bfloat16, set_precision

needs_bfloat16 = pytest.mark.skipif(not has_native_bfloat16(), reason="this CPU has no bfloat16 instructions")


@needs_bfloat16
@pytest.mark.parametrize("variant", ["plain", "options"])
def test_features_are_close_and_detections_float32(narrow, variant):
    model = narrow.model(variant).eval()
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(narrow.inputs()).tensor)
    assert set_precision(model, "bfloat16") is torch.bfloat16
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(narrow.inputs()).tensor)
    for name, level in features.items():
        assert level.dtype == torch.bfloat16
        error = (level.float() - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 0.1, name
    instances = model(narrow.inputs())[0]["instances"]
    assert instances.scores.dtype == instances.pred_boxes.tensor.dtype == torch.float32
    losses = model.losses(narrow.inputs())
    assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in losses.values())


def test_folding_the_norms_changes_nothing_but_rounding(narrow):
    model = narrow.model().eval()
    images = model.preprocess_image(narrow.inputs()).tensor
    with torch.no_grad():
        expected = model.backbone(images)
        for conv in (each for each in model.modules() if hasattr(each, "fold_norm")):
            conv.fold_norm()
        features = model.backbone(images)
    assert not any("norm" in name for name, _ in model.backbone.named_buffers())
    for name, level in features.items():
        torch.testing.assert_close(level, expected[name])


@needs_bfloat16
def test_auto_uses_bfloat16_where_it_is_native(narrow):
    assert set_precision(narrow.model().eval(), "auto") is torch.bfloat16


def test_float32_changes_nothing(narrow):
    model = narrow.model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert set_precision(model, "float32") is torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_models_keep_float32(caplog):
    if has_native_bfloat16():
        assert set_precision(nn.Linear(2, 2), "bfloat16") is torch.float32 and "Linear" in caplog.text


@pytest.mark.parametrize(("precision", "message"), [("int8", "'int8': expected one of"), ("float16", "is for GPUs")])
def test_refused(precision, message):
    with pytest.raises(UserError, match=message):
        set_precision(nn.Linear(2, 2), precision)


def test_a_cpu_without_bfloat16_keeps_float32_and_says_so():
    code = (
        "import logging, torch; logging.basicConfig();"
        "from d2_maskrcnn.modeling.precision import set_precision;"
        "print(set_precision(torch.nn.Linear(2, 2), 'bfloat16'), set_precision(torch.nn.Linear(2, 2), 'auto'))"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["torch.float32", "torch.float32"]
    assert result.stderr.count("no bfloat16 instructions") == 1
