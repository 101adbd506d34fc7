import torch

from d2_maskrcnn.evaluation.tta import TestTimeAugmentation
from detectron2.modeling import build_model

AUG = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 256]


def model_and_inputs(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for parameter in model.roi_heads.box_predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # so that scores differ
    image = (torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    return model, [{"image": image, "height": 128, "width": 160}]


def test_one_view_is_the_model_itself(tiny_cfg):
    cfg = tiny_cfg(*AUG, "TEST.AUG.FLIP", False)
    model, inputs = model_and_inputs(cfg)
    plain = model(inputs)[0]["instances"]
    augmented = TestTimeAugmentation(cfg, model)(inputs)[0]["instances"]
    assert len(plain) == len(augmented) > 0
    assert torch.allclose(plain.pred_boxes.tensor, augmented.pred_boxes.tensor, atol=1e-3)
    assert torch.equal(plain.pred_classes, augmented.pred_classes)
    assert (plain.pred_masks != augmented.pred_masks).float().mean() < 1e-3


def test_mirrored_image_has_mirrored_detections(tiny_cfg):
    cfg = tiny_cfg(*AUG, "TEST.AUG.MIN_SIZES", (64, 96))
    model, inputs = model_and_inputs(cfg)
    augmented = TestTimeAugmentation(cfg, model)
    first = augmented(inputs)[0]["instances"]
    second = augmented([{**inputs[0], "image": inputs[0]["image"].flip(2)}])[0]["instances"]
    assert len(first) == len(second) > 0
    boxes = second.pred_boxes.tensor
    mirrored = torch.stack([160 - boxes[:, 2], boxes[:, 1], 160 - boxes[:, 0], boxes[:, 3]], dim=1)
    assert torch.allclose(first.scores, second.scores, atol=1e-4)
    assert torch.allclose(first.pred_boxes.tensor, mirrored, atol=0.05)
    assert (first.pred_masks != second.pred_masks.flip(2)).float().mean() < 2e-3
