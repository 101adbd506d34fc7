"""From the network's frame to the output image: boxes scaled, masks pasted when asked for."""

from d2_maskrcnn.structures.lazy_masks import MaskInstances
from d2_maskrcnn.structures.masks import MASK_THRESHOLD
from detectron2.structures import Boxes, Instances


def postprocess(instances: Instances, height: int, width: int, mask_threshold: float = MASK_THRESHOLD) -> Instances:
    """Detections in the frame of an image of another size.

    Args:
        instances: ``image_size`` is the frame that ``pred_boxes`` are in; ``pred_masks`` (n, 1, S, S), if there, are
            probabilities inside each box.
        height, width: of the output image, in pixels.

    Returns:
        new Instances of image size (height, width): ``pred_boxes`` scaled and clipped, those without area dropped;
        ``pred_masks`` (n, height, width) bool, pasted when it is first read; all other fields unchanged.
    """
    scale_x, scale_y = width / instances.image_size[1], height / instances.image_size[0]
    boxes = Boxes(instances.pred_boxes.tensor.clone())
    boxes.scale(scale_x, scale_y)
    boxes.clip((height, width))
    fields = {name: value for name, value in instances.get_fields().items() if name != "pred_boxes"}
    results = Instances((height, width), pred_boxes=boxes, **fields)
    results = results[boxes.nonempty()]
    if not results.has("pred_masks"):
        return results
    probabilities = results.pred_masks[:, 0]
    results.remove("pred_masks")
    return MaskInstances.from_probabilities(results, probabilities, mask_threshold)
