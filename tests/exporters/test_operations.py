"""Operations of the exported graph against those of the model."""

import torch

from d2_maskrcnn.exporters.operations import DROPPED, paste, suppress
from d2_maskrcnn.structures.mask_pasting import paste_masks


def test_suppress_treats_groups_separately():
    boxes = torch.tensor(
        [[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]], [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 1, 1]]]
    )
    scores = torch.tensor([[0.9, 0.8, 0.7], [DROPPED, 0.5, 0.6]])
    expected = torch.tensor([[0.9, DROPPED, 0.7], [DROPPED, 0.5, 0.6]])
    assert suppress(boxes, scores, 0.5, 3).equal(expected)


def test_paste_equals_paste_masks():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 28, 28, generator=generator)
    corner = torch.rand(40, 2, generator=generator) * 60 - 10
    boxes = torch.cat((corner, corner + 1 + torch.rand(40, 2, generator=generator) * 60), dim=1)
    pasted = paste(masks, boxes, 60, 80)
    assert (pasted != paste_masks(masks, boxes, 60, 80)).float().mean() < 1e-4
    assert pasted.any()
