import numpy as np
import pytest
import torch

from d2_maskrcnn.structures.lazy_masks import BoxMasks

SIZE = (70, 90)


@pytest.fixture
def random_masks() -> BoxMasks:
    """Forty smooth masks in boxes of which some leave the image and some are outside."""
    rng = np.random.default_rng(0)
    centers, sides = rng.uniform(-10, 100, (40, 2)), rng.uniform(0.5, 60, (40, 2))
    boxes = np.concatenate((centers - sides / 2, centers + sides / 2), axis=1).astype(np.float32)
    blobs = torch.nn.functional.interpolate(torch.from_numpy(rng.normal(size=(40, 1, 5, 5)) * 5), 28, mode="bilinear")
    return BoxMasks(boxes, blobs.sigmoid()[:, 0].float().numpy(), SIZE)
