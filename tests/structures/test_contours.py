import cv2
import numpy as np
import pytest

from d2_maskrcnn.structures.contours import join_rings, mask_to_rings, simplify_rings
from d2_maskrcnn.structures.masks import decode_segmentation


def flat(ring):
    return ring.astype(float).ravel().tolist()


def blobs(seed):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random(rng.integers(5, 60, 2)), (0, 0), rng.uniform(0.5, 4))
    return noise > np.quantile(noise, rng.uniform(0.2, 0.8))


def test_empty_masks():
    assert mask_to_rings(np.zeros((0, 5), bool)) == mask_to_rings(np.zeros((4, 5), bool)) == []


def test_a_square_with_a_hole():
    mask = np.zeros((8, 9), bool)
    mask[1:6, 2:8], mask[3, 4:6] = True, False
    ((outer, (hole,)),) = mask_to_rings(mask, offset=(10, 20))
    assert {tuple(point) for point in outer} == {(12, 21), (18, 21), (18, 26), (12, 26)}
    assert (hole.min(axis=0), hole.max(axis=0)) == (pytest.approx([14, 23]), pytest.approx([16, 24]))


@pytest.mark.parametrize("seed", range(20))
def test_rings_and_the_joined_polygon_have_the_same_pixels(seed):
    mask = blobs(seed)
    rings = [ring for outer, holes in mask_to_rings(mask) for ring in (outer, *holes)]
    drawn = np.zeros_like(mask)
    for ring in rings:
        drawn ^= decode_segmentation([flat(ring)], *mask.shape)
    assert (drawn == mask).all()
    assert (decode_segmentation([flat(join_rings(rings))], *mask.shape) == mask).all()


def test_fewer_points_within_the_stated_loss():
    y, x = np.mgrid[:120, :160]
    mask = (x - 80) ** 2 + (y - 60) ** 2 < 50**2
    ((outer, _),) = mask_to_rings(mask)
    sizes = []
    for min_iou in (0.9, 0.98, 1.0):
        (ring,) = simplify_rings([outer], mask, min_iou)
        found = decode_segmentation([flat(ring)], *mask.shape)
        assert (found & mask).sum() >= min_iou * (found | mask).sum()
        sizes.append(len(ring))
    assert sizes[0] < sizes[1] < sizes[2] == len(outer)
    mask[40:80, 60:100] = False
    assert simplify_rings([outer], mask, 0.98) is None
