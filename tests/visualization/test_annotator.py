import numpy as np
import pytest

from d2_maskrcnn.visualization import PALETTE, Annotator
from d2_maskrcnn.visualization.annotator import font_size, label_text, line_thickness

GRAY = 100


def annotate(detections, **options) -> np.ndarray:
    image = np.full((*detections.image_size, 3), GRAY, np.uint8)
    Annotator(["cat", "dog"], **options).draw(image, detections)
    return image


def test_no_detections(make_detections):
    assert (annotate(make_detections([], (40, 60))) == GRAY).all()


def test_pixels_of_mask_edge_and_box(make_detections):
    """A mask of the left half: its fill blends color and image, its edge and the box have the pure color."""
    half = np.zeros((1, 28, 28), np.float32)
    half[:, :, :14] = 1
    detections = make_detections([[20, 20, 76, 76]], (120, 120), probabilities=half)
    image = annotate(detections, labels=False)
    color = np.array(PALETTE[0][::-1])
    mixed = 0.55 * GRAY + 0.45 * color
    assert np.abs(image[30:66, 25:40] - mixed).max() <= 1
    assert (image[30:66, 55:70] == GRAY).all()  # the other half, inside the box
    assert (image[20, 20:76] == color).all() and (image[75, 20:76] == color).all()
    assert (image[30:66, 46:48] == color).all(axis=2).any(axis=1).all()  # the edge in the middle
    outside = np.ones((120, 120), bool)
    outside[19:77, 19:77] = False
    assert (image[outside] == GRAY).all()


def test_boxes_beyond_the_image(make_detections):
    detections = make_detections([[-10, -10, 20, 20], [110, 110, 200, 130], [300, 300, 310, 310]], (120, 120))
    image = annotate(detections, labels=False)
    assert (image[40:100, 40:100] == GRAY).all()
    assert (image[:10, :10] != GRAY).any() and (image[115:, 115:] != GRAY).any()


def test_small_objects_are_drawn_over_large_ones(make_detections):
    detections = make_detections([[40, 40, 60, 60], [10, 10, 110, 110]], (120, 120))
    image = annotate(detections, labels=False, masks=False)
    assert tuple(image[40, 50, ::-1]) == PALETTE[0]
    assert tuple(image[10, 50, ::-1]) == PALETTE[1]


def test_colors_stay_with_tracks(make_detections):
    annotator = Annotator(labels=False)
    for boxes, ids in (([[10, 10, 40, 40], [60, 60, 90, 90]], [1, 2]), ([[62, 60, 92, 90], [12, 10, 42, 40]], [2, 1])):
        image = np.full((120, 120, 3), GRAY, np.uint8)
        annotator.draw(image, make_detections(boxes, (120, 120), ids))
        assert tuple(image[10, 30, ::-1]) == PALETTE[0]
        assert tuple(image[60, 80, ::-1]) == PALETTE[1]


def test_tags_are_drawn_and_their_boxes_are_dashed(make_detections):
    detections = make_detections([[20, 20, 60, 60], [80, 20, 120, 60]], (80, 140))
    image = np.full((80, 140, 3), GRAY, np.uint8)
    Annotator(labels=False, masks=False).draw(image, detections, colors=[3, 4], tags=["", "FP"])
    colored = (image[20] != GRAY).any(axis=1)
    assert colored[20:60].all() and 0.5 < colored[80:120].mean() < 0.8
    assert tuple(image[20, 20, ::-1]) == PALETTE[3] and tuple(image[20, 80, ::-1]) == PALETTE[4]
    labels = [annotate(detections, masks=False, boxes=False)]
    labels.append(np.full((80, 140, 3), GRAY, np.uint8))
    Annotator(["cat", "dog"], masks=False, boxes=False).draw(labels[1], detections, tags=["", "FP"])
    assert (labels[1][:, 80:] != labels[0][:, 80:]).any()


def test_fill_never_wraps_around(make_detections):
    for alpha in (0, 0.25, 0.5, 1):
        image = np.full((60, 60, 3), 255, np.uint8)
        detections = make_detections([[5, 5, 55, 55]], (60, 60))
        Annotator(alpha=alpha, labels=False, boxes=False).draw(image, detections)
        expected = 255 * (1 - alpha) + np.array(PALETTE[0][::-1]) * alpha
        assert np.abs(image[30, 30] - expected).max() <= 1


def test_holes_stay_open(make_detections):
    ring = np.ones((1, 28, 28), np.float32)
    ring[:, 8:20, 8:20] = 0
    image = annotate(make_detections([[10, 10, 94, 94]], (110, 110), probabilities=ring), labels=False)
    assert (image[48:56, 48:56] == GRAY).all()


def test_wrong_images_are_refused(make_detections):
    detections = make_detections([], (40, 60))
    with pytest.raises(ValueError, match=r"\(40, 60\)"):
        Annotator().draw(np.zeros((60, 40, 3), np.uint8), detections)
    with pytest.raises(ValueError, match="float32"):
        Annotator().draw(np.zeros((40, 60, 3), np.float32), detections)
    with pytest.raises(ValueError, match=r"1\.5"):
        Annotator(alpha=1.5)


def test_label_texts():
    assert label_text(["cat"], 0, 0.98) == "cat 98%"
    assert label_text(["cat"], 0, 0.98, 7) == "#7 cat 98%"
    assert label_text([], 3) == "class 3"
    assert label_text(["cat"], None, 0.98, 7) == "#7 98%"
    assert label_text(["cat"], None, float("nan")) == ""


def test_a_single_class_is_named_once(make_detections):
    """Labels of ground truth, which has no score: the first object is named, the others have no label."""
    boxes, size = [[10, 30, 40, 60], [110, 30, 140, 60]], (80, 200)
    detections = make_detections(boxes, size, scores=[np.nan, np.nan])
    options = {"masks": False, "boxes": False}
    image = np.zeros((*size, 3), np.uint8)
    Annotator(["cat"], **options).draw(image, detections)
    assert image[:, :100].any() and not image[:, 100:].any()
    Annotator(["cat", "dog"], **options).draw(image, detections)
    assert image[:, 100:].any()


def test_everything_grows_with_the_image():
    assert [line_thickness(s) for s in ((480, 640), (720, 1280), (2160, 3840))] == [1, 2, 6]
    assert [font_size(s) for s in ((64, 64), (720, 1280), (2160, 3840))] == [11, 17, 52]
