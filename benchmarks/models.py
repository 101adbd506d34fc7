"""The models that the benchmarks compare, with random weights that make all of them do the same amount of work."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import d2_maskrcnn  # noqa: E402
from d2_maskrcnn.config import use_d2_maskrcnn_components  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

HEIGHT, WIDTH, CLASSES = 800, 1200, 80
PROPOSALS, DETECTIONS = 1000, 100
DETECTRON2_COMPONENTS = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
}

Run = Callable[[], int]


def make_image(height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Return (3, height, width) uint8 noise at several scales, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(1, 3, max(height // s, 1), max(width // s, 1), generator=generator) for s in (1, 8, 50, 200)]
    total = sum(nn.functional.interpolate(layer, size=(height, width), mode="bilinear") for layer in layers)
    return (total[0] * (255 / len(layers))).to(torch.uint8)


def build_detectron2(ours: bool = True, device: str = "cpu", opts: Sequence[Any] = ()) -> nn.Module:
    """Build ``configs/mrcnn_R101.yaml`` with this plugin's components or with Detectron2's own."""
    cfg = get_cfg()
    d2_maskrcnn.add_d2_maskrcnn_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / "mrcnn_R101.yaml"))
    if ours:
        use_d2_maskrcnn_components(cfg)
    else:
        cfg.merge_from_list([item for pair in DETECTRON2_COMPONENTS.items() for item in pair])
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *opts])
    return build_model(cfg)


def build_torchvision(device: str = "cpu", depth: int = 101, classes: int = CLASSES, **settings: Any) -> nn.Module:
    """Build torchvision's Mask R-CNN of the same depth, with frozen batch norm and the same numbers of results."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name=f"resnet{depth}", weights=None, trainable_layers=3)
    settings = {"rpn_post_nms_top_n_test": PROPOSALS, "box_detections_per_img": DETECTIONS, **settings}
    return MaskRCNN(backbone, num_classes=classes + 1, **settings).to(device)


def make_run(model: nn.Module, image: torch.Tensor, batch: int = 1) -> Run:
    """Return a function that runs one forward pass with whole-image masks and returns the number of detections."""
    size = tuple(image.shape[1:])
    image = image.to(next(model.parameters()).device)
    if hasattr(model, "proposal_generator"):
        inputs: list[Any] = [{"image": image, "height": size[0], "width": size[1]}] * batch

        def run() -> int:
            masks = [result["instances"].pred_masks for result in model(inputs)]
            assert all(each.shape[1:] == size for each in masks)
            return sum(map(len, masks))

    else:
        inputs = [image.float() / 255] * batch

        def run() -> int:
            masks = [result["masks"] for result in model(inputs)]
            assert all(each.shape[1:] == (1, *size) for each in masks)
            return sum(map(len, masks))

    return run


def calibrate(model: nn.Module, run: Run) -> None:
    """Scale random weights so that activations do not grow with depth and scores differ from each other."""
    for name, tensor in model.named_buffers():
        if name.endswith(("conv3.norm.weight", "bn3.weight")):
            tensor.fill_(0.2)  # a block adds little to its shortcut
    predictor: Any = model.get_submodule("roi_heads.box_predictor")
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    outputs: list[torch.Tensor] = []
    hook = predictor.cls_score.register_forward_hook(lambda module, args, output: outputs.append(output))
    run()
    hook.remove()
    with torch.no_grad():
        predictor.cls_score.weight.mul_(2.0 / outputs[0].std())


def torchvision_batch(
    batch: list[dict[str, Any]], device: str = "cpu"
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Convert a training batch of this project to torchvision's images and targets."""
    images = [item["image"].to(device).float() / 255 for item in batch]
    targets = [
        {
            "boxes": item["instances"].gt_boxes.tensor.to(device),
            "labels": item["instances"].gt_classes.to(device) + 1,
            "masks": item["instances"].gt_masks.tensor.to(device, torch.uint8),
        }
        for item in batch
    ]
    return images, targets


def print_report(text: str, output: Path | None) -> None:
    """Print a report, and write it to a file if one is named."""
    print(text)
    if output:
        output.write_text(text)


def disable_residuals(model: nn.Module) -> None:
    """Make residual blocks identities: random weights under frozen norms would let training diverge."""
    for module in model.modules():
        last = getattr(module, "bn3", None) or getattr(getattr(module, "conv3", None), "norm", None)
        if last is not None:
            last.weight.zero_()
