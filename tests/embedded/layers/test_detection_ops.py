"""``pasting_of_detectron2.json`` contains masks and boxes, and Detectron2 0.6's results for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from detectron2.layers import ROIAlign, batched_nms, mask_ops, paste_masks_in_image
from detectron2.structures import Boxes

REFERENCE = json.loads((Path(__file__).parent / "pasting_of_detectron2.json").read_text())
MASKS, BOXES = torch.tensor(REFERENCE["masks"]), torch.tensor(REFERENCE["boxes"])
SIZE = tuple(REFERENCE["image_size"])


def unpack(packed):
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed["bits"]), np.uint8))[: np.prod(packed["shape"])]
    return torch.from_numpy(bits.reshape(packed["shape"]).astype(bool))


def expected_paste(threshold):
    if threshold < 0:
        values = np.frombuffer(bytes.fromhex(REFERENCE["soft"]), np.uint8)
        return torch.from_numpy(values.reshape(-1, *SIZE).copy())
    return unpack(REFERENCE["pasted" if threshold == 0.5 else f"pasted_at_{threshold}"])


class TestPaste:
    @pytest.mark.parametrize("threshold", [0.5, 0.3, -1])
    def test_equals_detectron2(self, threshold):
        for boxes in (BOXES, Boxes(BOXES)):
            pasted = paste_masks_in_image(MASKS, boxes, SIZE, threshold)
            assert torch.equal(pasted, expected_paste(threshold))

    @pytest.mark.parametrize("threshold", [0.5, -1])
    def test_gpus_way_gives_the_same(self, threshold, monkeypatch):
        """The way that whole images are resampled in, two instances at a time."""
        monkeypatch.setattr(mask_ops, "_CHUNK_BYTES", 2 * SIZE[0] * SIZE[1] * mask_ops._BYTES_PER_PIXEL)
        expected = expected_paste(threshold)
        pasted = torch.zeros_like(expected)
        mask_ops._paste_in_chunks(MASKS, BOXES, pasted, threshold)
        assert torch.equal(pasted, expected)

    @pytest.mark.parametrize(("threshold", "dtype"), [(0.5, torch.bool), (-1, torch.uint8)])
    def test_nothing(self, threshold, dtype):
        pasted = paste_masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6), threshold)
        assert pasted.shape == (0, 5, 6) and pasted.dtype == dtype

    @pytest.mark.parametrize(
        "box", [[3.0, 3, 3, 9], [9.0, 9, 2, 2], [100.0, 100, 120, 120], [-50.0, -50, -20, -20], [2.0, 2, 2, 2]]
    )
    def test_boxes_without_area_or_outside(self, box):
        full = torch.ones(1, 4, 4)
        one_by_one = paste_masks_in_image(full, torch.tensor([box]), (10, 10))
        in_chunks = torch.zeros_like(one_by_one)
        mask_ops._paste_in_chunks(full, torch.tensor([box]), in_chunks, 0.5)
        assert not one_by_one.any() and not in_chunks.any()

    def test_full_mask_fills_its_box(self):
        pasted = paste_masks_in_image(torch.ones(1, 28, 28), torch.tensor([[2.0, 3, 7, 9]]), (12, 11))
        expected = torch.zeros(1, 12, 11, dtype=torch.bool)
        expected[:, 3:9, 2:7] = True
        assert torch.equal(pasted, expected)

    @pytest.mark.parametrize(
        ("masks", "boxes"), [(torch.zeros(1, 4, 5), BOXES[:1]), (torch.zeros(4, 4), BOXES[:1]), (MASKS, BOXES[:1])]
    )
    def test_refuses(self, masks, boxes):
        with pytest.raises(ValueError, match=r"Masks must|one box per mask"):
            paste_masks_in_image(masks, boxes, (5, 5))


class TestBatchedNMS:
    def test_nothing(self):
        kept = batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5)
        assert kept.tolist() == []

    def test_groups_are_kept_apart(self):
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9.5], [50, 50, 60, 60]])
        scores = torch.tensor([0.5, 0.9, 0.7, 0.6])
        assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
        assert batched_nms(boxes, scores, torch.tensor([0, 0, 0, 0]), 0.5).tolist() == [1, 3]
        assert batched_nms(boxes, scores, torch.tensor([0, 0, 0, 0]), 0.99).tolist() == [1, 2, 3, 0]

    def test_half_precision_boxes(self):
        """Half precision could not tell 2001 from 2002, let alone with an offset for each of 80 groups."""
        boxes = torch.tensor([[2000.0, 0, 2002, 2], [1000, 0, 1002, 2]], dtype=torch.float16)
        kept = batched_nms(boxes.repeat(80, 1), torch.rand(160), torch.arange(80).repeat_interleave(2), 0.5)
        assert len(kept) == 160

    @pytest.mark.parametrize("count", [0, 1, 900, 1100])
    def test_equals_torchvision_on_both_sides_of_its_limit(self, count):
        torch.manual_seed(count)
        corner = torch.rand(count, 2) * 300
        boxes = torch.cat([corner, corner + torch.rand(count, 2) * 80], dim=1)
        scores, groups = torch.rand(count), torch.randint(0, 5, (count,))
        expected = torchvision.ops.batched_nms(boxes, scores, groups, 0.4)
        assert torch.equal(batched_nms(boxes, scores, groups, 0.4), expected)
        assert count < 900 or 0 < len(expected) < count

    def test_imports_torchvision_only_when_it_is_needed(self, repo_dir):
        code = (
            "import d2_maskrcnn, sys, torch; from detectron2.layers import batched_nms, nms, roi_align\n"
            "boxes, scores = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9])\n"
            "assert batched_nms(boxes, scores, torch.zeros(2), 0.5).tolist() == [1]\n"
            "assert nms(boxes, scores, 0.5).tolist() == [1]\n"
            "assert 'torchvision' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
            "import torchvision\n"
            "assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1]\n"
            "assert roi_align(torch.ones(1, 1, 9, 9), [boxes], 1).shape == (2, 1, 1, 1)\n"
        )
        env = {**os.environ, "PYTHONPATH": str(repo_dir), "D2_MASKRCNN_ENGINE": "embedded"}
        result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


class TestROIAlign:
    def test_constant_and_ramp(self):
        ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 2, 16, 16)
        rois = torch.tensor([[0.0, 8, 8, 24, 24]])
        pooled = ROIAlign(2, spatial_scale=0.5, sampling_ratio=2)(ramp, rois)
        # Bins span 4...8 and 8...12 in feature pixels; pixel i has its center at i + 0.5.
        assert pooled.tolist() == [[[[5.5, 9.5], [5.5, 9.5]]] * 2]
        shifted = ROIAlign((2, 2), 0.5, 2, aligned=False)(ramp, rois)
        assert shifted.tolist() == [[[[6.0, 10.0], [6.0, 10.0]]] * 2]

    def test_no_boxes_and_wrong_boxes(self):
        pool = ROIAlign((7, 5), 1.0, 0)
        assert pool(torch.zeros(1, 2, 9, 9), torch.zeros(0, 5)).shape == (0, 2, 7, 5)
        assert "output_size=(7, 5)" in repr(pool)
        with pytest.raises(ValueError, match=r"\(K, 5\), got \(1, 4\)"):
            pool(torch.zeros(1, 2, 9, 9), torch.zeros(1, 4))
