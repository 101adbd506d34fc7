"""Scale a model's results from the network's input to the output image."""

import torch
from torch.nn import functional as F

from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

__all__ = ["detector_postprocess", "sem_seg_postprocess"]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections to the output image and paste their masks.

    Args:
        results: ``image_size`` is the network's input without padding, the frame of ``pred_boxes`` (or
            ``proposal_boxes``) and of ``pred_keypoints`` (N, K, 3). ``pred_masks`` is (N, 1, M, M), probabilities
            inside each box.
        output_height, output_width: size of the output image in pixels.
        mask_threshold: probability from which on a pixel belongs to a mask.

    Returns:
        New instances of image size (output_height, output_width), without those whose clipped box is empty;
        ``pred_masks`` is (N, output_height, output_width) bool. ``results`` is unchanged.
    """
    height, width = results.image_size
    scale_x, scale_y = output_width / width, output_height / height
    scaled = Instances((output_height, output_width), **results.get_fields())
    kind = "pred_boxes" if scaled.has("pred_boxes") else "proposal_boxes"
    boxes = scaled.get(kind).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(scaled.image_size)
    scaled.set(kind, boxes)
    if scaled.has("pred_keypoints"):
        scaled.pred_keypoints = scaled.pred_keypoints * scaled.pred_keypoints.new_tensor((scale_x, scale_y, 1))
    scaled = scaled[boxes.nonempty()]
    if scaled.has("pred_masks"):
        probabilities = scaled.pred_masks[:, 0]  # (N, M, M)
        scaled.pred_masks = paste_masks_in_image(probabilities, scaled.get(kind), scaled.image_size, mask_threshold)
    return scaled


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Resample per-class scores (C, H, W) from the padded input to (C, output_height, output_width).

    Args:
        img_size: (height, width) of the input without its padding.
    """
    valid = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(valid, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
