import numpy as np
import pytest
import torch

from d2_maskrcnn import UserError, add_d2_maskrcnn_config
from d2_maskrcnn.data import build_resumable_train_loader, register_own_data
from d2_maskrcnn.data.augmentation import CopyPaste, paste
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances

LSJ = ["D2_MASKRCNN.INPUT.LSJ.ENABLED", True, "D2_MASKRCNN.INPUT.LSJ.IMAGE_SIZE", 96]
COPY_PASTE = ["D2_MASKRCNN.INPUT.COPY_PASTE.ENABLED", True, "D2_MASKRCNN.INPUT.COPY_PASTE.PROBABILITY", 1.0]


def sample(value, size, *objects):
    """Return an image of one color with rectangles (class, x0, y0, x1, y1)."""
    height, width = size
    masks = torch.zeros((len(objects), height, width), dtype=torch.bool)
    for mask, (_, x0, y0, x1, y1) in zip(masks, objects, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances(size, gt_classes=torch.tensor([o[0] for o in objects], dtype=torch.int64))
    instances.gt_masks, instances.gt_boxes = (
        BitMasks(masks),
        Boxes(torch.tensor([o[1:] for o in objects]).reshape(-1, 4)),
    )
    return {
        "image": torch.full((3, height, width), value, dtype=torch.uint8),
        "instances": instances,
        "image_id": value,
    }


@pytest.mark.parametrize("chosen", [[0], [0, 1]])
def test_pasted_objects_cover_others(chosen):
    below = sample(10, (20, 20), (5, 0, 0, 10, 10), (6, 12, 12, 14, 14))
    above = sample(99, (16, 30), (1, 5, 0, 15, 8), (2, 12, 12, 25, 16))
    before = below["image"].clone()
    pasted = paste(below, above, torch.tensor(chosen))
    instances = pasted["instances"]
    covered = torch.zeros(20, 20, dtype=torch.bool)
    covered[0:8, 5:15] = True
    if len(chosen) == 2:
        covered[12:16, 12:20] = True  # clipped to the target image
    assert torch.equal(pasted["image"][0] == 99, covered)
    assert torch.equal(below["image"], before)
    if len(chosen) == 1:
        assert instances.gt_classes.tolist() == [5, 6, 1]
    else:
        assert instances.gt_classes.tolist() == [5, 1, 2]  # nothing is left of class 6
    masks = instances.gt_masks.tensor
    assert masks[0].sum() == 100 - 5 * 8 and not (masks[0] & covered).any()
    assert instances.gt_boxes.tensor.tolist()[0] == [0, 0, 10, 10]
    assert pasted["image_id"] == 10


def test_copy_paste_is_a_function_of_the_generator():
    samples = [sample(10 * i, (20, 20), (i, 2 * i, 2, 2 * i + 6, 10), (i, 0, 12, 5, 18)) for i in range(5)]
    mapper = CopyPaste(lambda index: samples[index], list(range(5)), 1.0)
    images = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        images.append(torch.stack([mapper(i % 5)["image"] for i in range(10)]))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    never = CopyPaste(lambda index: samples[index], list(range(5)), 0.0)
    assert never(1) is samples[1]


@pytest.fixture
def loader_of(tiny_shapes):
    """``loader_of(KEY, VALUE, ...)``: a training loader of the tiny dataset."""

    def build(*opts):
        cfg = get_cfg()
        add_d2_maskrcnn_config(cfg)
        json_file = tiny_shapes / "annotations" / "instances_train.json"
        cfg.merge_from_list(["D2_MASKRCNN.DATA.TRAIN_JSON", str(json_file), "MODEL.MASK_ON", True, *opts])
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
        register_own_data(cfg)
        return build_resumable_train_loader(cfg, seed=0)

    return build


@pytest.mark.parametrize("opts", [LSJ, COPY_PASTE, [*LSJ, *COPY_PASTE]])
def test_from_config_keys(loader_of, opts):
    loader = loader_of(*opts, "INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", (64,))
    batch = next(iter(loader))
    if opts[0].startswith("D2_MASKRCNN.INPUT.LSJ"):
        assert all(item["image"].shape == (3, 96, 96) for item in batch)
    for item in batch:
        masks = item["instances"].gt_masks
        assert torch.equal(masks.get_bounding_boxes().tensor, item["instances"].gt_boxes.tensor)
    again = next(iter(loader))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, again, strict=True))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([*COPY_PASTE, "INPUT.MASK_FORMAT", "polygon"], "needs masks as bitmaps: set INPUT.MASK_FORMAT"),
        ([*COPY_PASTE, "INPUT.MASK_FORMAT", "bitmask", COPY_PASTE[2], 1.5], "PROBABILITY is 1.5"),
        ([*LSJ, "D2_MASKRCNN.INPUT.LSJ.MIN_SCALE", 3.0], "MIN_SCALE 3.0"),
    ],
)
def test_bad_values(loader_of, opts, message):
    with pytest.raises(UserError, match=message):
        loader_of(*opts)
