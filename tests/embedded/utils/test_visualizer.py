"""The Visualizer by its pixels; it draws on matplotlib, so the tests look at regions rather than at single pixels."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from d2_maskrcnn.modeling.roi_heads.inference import postprocess
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer

SIZE = (80, 120)
METADATA = Metadata(name="drawn", thing_classes=["cat", "dog"], thing_colors=[(250, 0, 0), (0, 0, 250)])
METADATA.set(stuff_classes=["sky", "grass"], stuff_colors=[(0, 0, 250), (0, 250, 0)])


def grey() -> np.ndarray:
    return np.full((*SIZE, 3), 128, np.uint8)


def square(x0, y0, x1, y1) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances(boxes=((20, 20, 60, 60),), classes=None, masks=True) -> Instances:
    count = len(boxes)
    found = Instances(SIZE, pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
    found.scores = torch.full((count,), 0.9)
    found.pred_classes = torch.tensor(classes or [0] * count, dtype=torch.int64)
    if masks:
        found.pred_masks = torch.from_numpy(np.array([square(*b) for b in boxes]).reshape(-1, *SIZE))
    return found


@pytest.mark.parametrize("scale", [1, 1.5, 2, 0.37])
def test_the_canvas_has_the_images_size(scale):
    for size in (SIZE, (33, 57), (641, 427)):
        image = VisImage(np.zeros((*size, 3), np.uint8), scale).get_image()
        assert image.shape == (int(size[0] * scale + 0.01), int(size[1] * scale + 0.01), 3)


def test_nothing_drawn_is_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    assert (Visualizer(image).get_output().get_image() == image).all()


def test_no_instances():
    for masks in (True, False):
        drawn = Visualizer(grey(), METADATA).draw_instance_predictions(instances((), masks=masks))
        assert (drawn.get_image() == 128).all()


def test_predictions_are_drawn_where_they_are():
    drawn = Visualizer(grey(), METADATA, instance_mode=ColorMode.SEGMENTATION)
    image = drawn.draw_instance_predictions(instances(), jittering=False).get_image()
    inside, outside = image[45:55, 45:55].astype(int), image[65:, 65:]
    assert (outside == 128).all()
    assert (inside[..., 0] > 180).all() and (inside[..., 1] < 80).all()  # the first class is red


def test_small_masks_are_drawn_like_whole_ones():
    raw = Instances(SIZE, pred_boxes=Boxes(torch.tensor([[20.0, 20, 60, 60]])), scores=torch.tensor([0.9]))
    raw.pred_classes, raw.pred_masks = torch.tensor([0]), torch.ones(1, 1, 28, 28)
    small = postprocess(raw, *SIZE)
    one, two = (
        Visualizer(grey(), METADATA, instance_mode=ColorMode.SEGMENTATION)
        .draw_instance_predictions(found, jittering=False)
        .get_image()
        for found in (small, instances())
    )
    assert "pred_masks" not in small._fields  # never made
    assert (one == two).all()


def test_grey_where_nothing_is():
    image = grey()
    image[:, :, 0] = 250
    drawn = Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(instances())
    assert len(np.unique(drawn.get_image()[70, 100])) == 1


@pytest.mark.parametrize(
    "masks",
    [
        np.array([square(20, 20, 60, 60)]),
        torch.from_numpy(np.array([square(20, 20, 60, 60)])),
        BitMasks(torch.from_numpy(np.array([square(20, 20, 60, 60)]))),
        PolygonMasks([[np.array([20, 20, 60, 20, 60, 60, 20, 60])]]),
        [[[20, 20, 60, 20, 60, 60, 20, 60]]],
        [mask_util.encode(np.asfortranarray(square(20, 20, 60, 60), dtype=np.uint8))],
        [GenericMask(square(20, 20, 60, 60), *SIZE)],
    ],
    ids=["array", "tensor", "BitMasks", "PolygonMasks", "polygons", "rle", "GenericMask"],
)
def test_every_kind_of_mask(masks):
    image = Visualizer(grey()).overlay_instances(masks=masks, assigned_colors=["red"], alpha=1).get_image()
    assert (image[30:50, 30:50] == (255, 0, 0)).all()
    assert (image[65:] == 128).all()


def test_numbers_must_agree():
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        Visualizer(grey()).overlay_instances(boxes=[[0, 0, 5, 5]], labels=["a", "b"])


def test_dataset_records():
    record = {
        "annotations": [
            {"bbox": [20, 20, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 1},
        ],
        "sem_seg": np.where(square(80, 0, 120, 80), 1, 255),
    }
    image = Visualizer(grey(), METADATA).draw_dataset_dict(record).get_image()
    assert (image[40, 18:22] != 128).any() and (image[70, 90] != 128).any()
    assert (Visualizer(grey(), METADATA).draw_dataset_dict({"annotations": []}).get_image() == 128).all()


def test_maps_of_classes():
    image = Visualizer(grey(), METADATA).draw_sem_seg(np.where(square(0, 0, 60, 80), 1, 7), draw_text=False).get_image()
    assert image[40, 30, 1] > 180 and (image[40, 100] == 128).all()


def test_panoptic_maps():
    values = np.where(square(10, 10, 50, 50), 5, 9)
    segments = [
        {"id": 5, "isthing": True, "category_id": 0, "score": 0.9},
        {"id": 9, "isthing": False, "category_id": 1},
    ]
    image = Visualizer(grey(), METADATA).draw_panoptic_seg(torch.from_numpy(values), segments, alpha=1).get_image()
    assert image[15, 45, 0] > 180 and image[70, 110, 1] > 180


def test_single_strokes():
    for draw in (
        lambda v: v.draw_text("text", (40, 40)),
        lambda v: v.draw_box((10, 10, 50, 50)),
        lambda v: v.draw_rotated_box_with_label((60, 40, 40, 20, 30), label="tilted"),
        lambda v: v.overlay_rotated_instances(np.array([[60, 40, 40, 20, 30]]), labels=["tilted"]),
        lambda v: v.draw_circle((40, 40), "r"),
        lambda v: v.draw_line((10, 90), (10, 60), "r"),
        lambda v: v.draw_binary_mask(square(20, 20, 60, 60), text="mask"),
        lambda v: v.draw_soft_mask(square(20, 20, 60, 60) * 0.7, text="mask"),
        lambda v: v.draw_polygon(np.array([[10, 10], [50, 10], [30, 60]]), "r"),
        lambda v: v.overlay_instances(keypoints=np.array([[[30, 30, 1], [50, 50, 0]]])),
    ):
        image = draw(Visualizer(grey())).get_image()
        assert image.shape == (*SIZE, 3) and (image != 128).any()
        assert (image[-3:, -3:] == 128).all()


def test_rotation_is_counterclockwise():
    image = Visualizer(grey()).draw_rotated_box_with_label((60, 40, 60, 4, 45), alpha=1, edge_color="red").get_image()
    assert (image[20:30, 70:85] != 128).any() and (image[50:60, 70:85] == 128).all()  # it rises to the right


def test_lines_beyond_the_image_do_not_shift_it():
    image = Visualizer(grey()).draw_line((-500, 10), (10, 10), "r").get_image()
    assert image.shape == (*SIZE, 3) and (image[40:] == 128).all()


def test_saving(tmp_path):
    Visualizer(grey()).draw_box((10, 10, 50, 50)).save(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0


def test_masks_with_holes():
    ring = square(20, 20, 60, 60) & ~square(30, 30, 50, 50)
    mask = GenericMask(ring, *SIZE)
    assert mask.has_holes and len(mask.polygons) == 2 and mask.area() == ring.sum()
    assert mask.bbox().tolist() == [20, 20, 60, 60]
    image = Visualizer(grey()).draw_binary_mask(ring, color="red", alpha=1).get_image()
    assert (image[35:45, 35:45] == 128).all() and (image[40, 23:28] == (255, 0, 0)).all()


def test_what_is_no_mask():
    with pytest.raises(ValueError, match="int"):
        GenericMask(3, *SIZE)
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        GenericMask(np.zeros((5, 5)), *SIZE)
    with pytest.raises(ValueError, match="size"):
        GenericMask({"size": [5, 5], "counts": "5"}, *SIZE)
    assert GenericMask([], *SIZE).area() == 0 and not GenericMask([], *SIZE).has_holes
    assert GenericMask(np.zeros(SIZE), *SIZE).polygons == []


def test_colors():
    assert colormap(rgb=True).shape[1] == 3 and colormap().max() <= 255 and colormap(maximum=1).max() <= 1
    assert (colormap(rgb=True)[:, ::-1] == colormap()).all()
    assert random_color(maximum=1).shape == (3,)
    assert len(np.unique(np.array(random_colors(20)), axis=0)) == 20
    with pytest.raises(ValueError, match="7"):
        colormap(maximum=7)


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_colors_stay_in_videos(masks):
    np.random.seed(0)  # colors are random, and two objects may get the same one
    video = VideoVisualizer(METADATA)
    before = None
    for step in range(5):
        boxes = [(10 + step, 10, 50 + step, 50), (70, 30 + step, 110, 70 + step)]
        order = [0, 1] if step % 2 else [1, 0]
        if step == 3:
            order = [1]  # one is hidden for a frame
        found = instances([boxes[i] for i in order], masks=masks)
        assert video.draw_instance_predictions(grey(), found).get_image().shape == (*SIZE, 3)
        colors = {tuple(known.color) for known in video._known}
        assert before is None or colors == before
        before = colors
    assert len(before) == 2


def test_videos_without_instances_and_with_ids():
    video = VideoVisualizer(METADATA, ColorMode.IMAGE_BW)
    assert (video.draw_instance_predictions(grey(), instances(())).get_image() == 128).all()
    found = instances([(10, 10, 50, 50), (70, 30, 110, 70)])
    found.ID = torch.tensor([7, 3])
    first = video.draw_instance_predictions(grey(), found).get_image()
    assert (video.draw_instance_predictions(grey(), found).get_image() == first).all()
    with pytest.raises(ValueError, match="SEGMENTATION"):
        VideoVisualizer(METADATA, ColorMode.SEGMENTATION)
