import numpy as np
import pytest

from d2_maskrcnn.visualization.labels import LabelPainter, choose_places, place
from d2_maskrcnn.visualization.palette import PALETTE

FRAME = (100, 200)


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((50, 40, 90, 80), (50, 30)),  # above the box
        ((50, 5, 90, 80), (50, 5)),  # no room above: inside
        ((180, 40, 199, 80), (160, 30)),  # moved in from the right
        ((-20, 40, 30, 80), (0, 30)),  # and from the left
        ((0, 0, 200, 100), (0, 0)),  # a box as large as the frame
        ((50, 95, 90, 100), (50, 85)),
    ],
)
def test_labels_are_inside_the_frame(box, where):
    assert place(np.array(box), 40, 10, FRAME, [])[:2] == where


def test_labels_do_not_cover_each_other():
    taken = []
    for _ in range(4):
        rect = place(np.array([50, 40, 100, 80]), 40, 10, FRAME, taken)
        assert all(rect[2] <= t[0] or t[2] <= rect[0] or rect[3] <= t[1] or t[3] <= rect[1] for t in taken)
        taken.append(rect)


def test_labels_of_a_crowd_move_along_their_boxes():
    """Ten objects in one place have more labels than a box has corners."""
    taken = []
    for _ in range(10):
        x0, y0, x1, y1 = rect = place(np.array([500, 400, 600, 500]), 150, 20, (1080, 1920), taken)
        assert all(x1 <= t[0] or t[2] <= x0 or y1 <= t[1] or t[3] <= y0 for t in taken)
        assert y1 > 400 - 3 * 20 - 1 and y0 < 500 + 3 * 20  # still near its box
        taken.append(rect)


def test_stamp_is_readable_and_cut_to_the_frame():
    painter = LabelPainter(16)
    stamp = painter.stamp("person 98%", PALETTE[0], 400)
    assert stamp.dtype == np.uint8
    assert tuple(stamp[0, 0, ::-1]) == PALETTE[0]
    assert stamp.min() < 30  # dark type on the bright background
    assert painter.stamp("a very long name of a class 100%", PALETTE[0], 60).shape[1] <= 60
    assert painter.stamp("person 98%", PALETTE[0], 400) is stamp  # kept


def test_letters_of_other_alphabets_are_drawn():
    painter = LabelPainter(20)
    stamps = [painter.stamp(text, PALETTE[0], 400) for text in ("ä", "ж", "λ")]
    assert len({stamp.tobytes() for stamp in stamps}) == 3


@pytest.mark.parametrize("size", [(8, 8), (30, 20), (12, 400)])
def test_tiny_images(size):
    image = np.zeros((*size, 3), np.uint8)
    LabelPainter(11).draw(image, ["person 98%"], np.array([[1, 1, 6, 6]]), [PALETTE[1]])
    assert image.any()


def test_control_characters_are_shown_escaped():
    painter = LabelPainter(16)
    escaped = painter.stamp(r"a\x1b[31m\u202e\ud800", PALETTE[0], 400)
    np.testing.assert_array_equal(painter.stamp("a\x1b[31m\u202e\ud800", PALETTE[0], 400), escaped)


@pytest.mark.parametrize("text", ["\x00", "\ud800", "日本語", "👩‍🚀", "שלום", "", "x" * 100_000])
def test_any_text_can_be_drawn(text):
    stamp = LabelPainter(16).stamp(text, PALETTE[0], 200)
    assert stamp.shape[1] <= 200 and stamp.size > 0


@pytest.mark.parametrize(("side", "share"), [(12, (0.01, 0.03)), (50, (0.05, 0.1))])
def test_labels_of_a_crowded_image_are_thinned(side, share):
    corners = np.random.default_rng(0).uniform(0, 500, (1400, 2))
    image = np.zeros((512, 512, 3), np.uint8)
    LabelPainter(11).draw(image, ["98%"] * 1400, np.concatenate((corners, corners + side), axis=1), [PALETTE[0]] * 1400)
    assert share[0] < image.any(axis=2).mean() <= share[1]


@pytest.mark.parametrize(("side", "labels"), [(128, 3), (384, 9)])
def test_labels_leave_most_of_a_small_image_visible(side, labels):
    corners = np.random.default_rng(0).uniform(0, side - 20, (9, 2))
    places = list(choose_places(np.concatenate((corners, corners + 20), axis=1), lambda _: (16, 72), (side, side)))
    assert [index for index, _ in places] == list(range(labels))


def test_a_label_hides_a_little_of_another_rather_than_to_be_far_from_its_box():
    taken = [(90, 70, 240, 84), (90, 100, 240, 140), (90, 140, 240, 190)]  # above, inside and below the box
    assert place(np.array([100, 100, 230, 140]), 60, 20, (400, 400), taken)[:2] == (100, 80)


def test_boxes_without_text_get_no_label():
    image = np.zeros((40, 80, 3), np.uint8)
    LabelPainter(11).draw(image, ["", ""], np.array([[5, 5, 20, 20], [30, 5, 60, 20]]), [PALETTE[0]] * 2)
    assert not image.any()
