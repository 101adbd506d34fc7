"""Boxes, feature maps and the comparison with the slow reference, shared by the tests of ROIAlign."""

import math

import torch
from reference import reference_roi_align

from d2_maskrcnn.ops import multilevel_roi_align

SCALES = (1 / 4, 1 / 8, 1 / 16)
SIZES = ((24, 40), (12, 20), (6, 10))  # of the levels, for images of 96 x 160
CANONICAL = (32.0, 1)  # so that small boxes spread over the levels

EMPTY: list[list[float]] = []
ORDINARY = [
    [3.3, 5.1, 21.7, 30.2],
    [40.2, 10.9, 90.1, 61.8],
    [5.5, 2.2, 150.9, 90.4],
    [100.0, 50.0, 116.0, 66.0],
    [8, 8, 24, 40],
]
BORDERS = [[0, 0, 160, 96], [0, 0, 16, 16], [144, 80, 160, 96], [0, 90, 160, 96], [-4, -4, 4, 4], [-2, -2, 162, 98]]
OUTSIDE = [
    [-300, -200, 400, 300],
    [-90, -90, -10, -10],
    [200, 120, 300, 190],
    [150, 40, 260, 50],
    [-1e9, -1e9, 1e9, 1e9],
]
DEGENERATE = [[20, 20, 20, 20], [20, 20, 50, 20], [50, 40, 20, 10], [30, 10, 20, 40], [7.9, 7.9, 8.0, 8.0]]
NOT_FINITE = [[math.nan, 0, 10, 10], [0, 0, math.inf, 10], [-math.inf, 0, 10, 10], [0, 0, 10, math.nan]]
BOXES = {
    "empty": EMPTY,
    "ordinary": ORDINARY,
    "borders": BORDERS,
    "outside": OUTSIDE,
    "degenerate": DEGENERATE,
    "non-finite": NOT_FINITE,
    "all": ORDINARY + BORDERS + OUTSIDE + DEGENERATE + NOT_FINITE,
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def make_features(dtype=torch.float32, channels=5, sizes=SIZES, images=2, channels_last=True, seed=0):
    """Return random feature maps of each level."""
    generator = torch.Generator().manual_seed(seed)
    features = [
        torch.randn((images, channels, *size), generator=generator, dtype=torch.float64).to(dtype) for size in sizes
    ]
    return [f.contiguous(memory_format=torch.channels_last) for f in features] if channels_last else features


def make_boxes(kind="all", dtype=torch.float32):
    """Return boxes of two images: the second has those of the first in reverse order and one more."""
    boxes = torch.tensor(BOXES[kind], dtype=dtype).view(-1, 4)
    return [boxes, torch.cat([boxes.flip(0), boxes[:1] * 0.75])]


def make_finite_boxes(kind="all"):
    """Return boxes without huge and non-finite ones, for which the reference would take every sample."""
    return [boxes[boxes.nan_to_num(1e9).abs().amax(dim=1) < 1e6] for boxes in make_boxes(kind)]


def value_and_gradients(function, features, *args, grad=None):
    features = [feature.detach().requires_grad_() for feature in features]
    pooled = function(features, *args)
    if not pooled.requires_grad:  # the reference, without boxes
        return pooled, [torch.zeros_like(feature) for feature in features], grad
    grad = (
        torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1), dtype=pooled.dtype)
        if grad is None
        else grad
    )
    gradients = torch.autograd.grad(pooled, features, grad.to(pooled.dtype), allow_unused=True)
    return (
        pooled.detach(),
        [torch.zeros_like(f) if g is None else g for f, g in zip(features, gradients, strict=True)],
        grad,
    )


def assert_equals_reference(features, boxes, *args):
    """Compare values and gradients with the reference in float64 from the same (rounded) features."""
    pooled, gradients, grad = value_and_gradients(multilevel_roi_align, features, boxes, *args)
    exact = [feature.double() for feature in features]
    expected, expected_gradients, _ = value_and_gradients(reference_roi_align, exact, boxes, *args, grad=grad)
    tolerance = TOLERANCE[pooled.dtype]
    assert pooled.dtype == features[0].dtype
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled.double(), expected, rtol=tolerance, atol=tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == pooled.dtype
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)
