import numpy as np
import pytest

from d2_maskrcnn.visualization.palette import PALETTE, ColorAssigner, choose_colors, luminance, text_color

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def to_lab(linear: np.ndarray) -> np.ndarray:
    ratio = np.clip(linear, 0, 1) @ TO_XYZ.T / WHITE
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), axis=1)


@pytest.mark.parametrize("vision", VISIONS)
def test_colors_are_distinguishable(vision):
    values = np.array(PALETTE) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lab = to_lab(linear @ np.array(VISIONS[vision]).T)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert distance[~np.eye(len(PALETTE), dtype=bool)].min() > 29


@pytest.mark.parametrize("color", PALETTE)
def test_text_has_contrast(color):
    """WCAG 2.2 requires a contrast of 4.5."""
    lighter, darker = sorted((luminance(color), luminance(text_color(color))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def boxes_at(*centers) -> np.ndarray:
    return np.array([[x - 5, 0, x + 5, 10] for x in centers], np.float32).reshape(-1, 4)


def test_no_objects():
    assert ColorAssigner().assign(boxes_at()) == []


def test_all_colors_differ_while_there_are_enough():
    assert len(set(ColorAssigner().assign(boxes_at(*range(0, 1000, 100))))) == len(PALETTE)


def test_a_repeated_color_is_far_away():
    colors = ColorAssigner().assign(boxes_at(*range(0, 1100, 100)))
    assert colors[10] == colors[0]


def test_colors_stay_with_tracks():
    assigner = ColorAssigner(memory=5)
    first = assigner.assign(boxes_at(0, 100, 200), np.array([7, 8, 9]))
    assigner.assign(boxes_at(100), np.array([8]))
    again = assigner.assign(boxes_at(50, 220, 120, 300), np.array([10, 9, 8, 7]))
    assert again[1:] == [first[2], first[1], first[0]]
    assert again[0] not in first


def test_given_colors_are_kept_and_the_others_differ_from_them():
    colors = choose_colors(boxes_at(0, 100, 200), [3, None, 0])
    assert colors[0] == 3 and colors[2] == 0 and colors[1] not in (0, 3)


def test_colors_of_lost_tracks_are_forgotten():
    assigner = ColorAssigner(memory=5)
    for frame in range(100):
        assigner.assign(boxes_at(0), np.array([frame]))
    assert len(assigner._color) <= 6
