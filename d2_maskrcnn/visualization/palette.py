"""The one palette of the project, and the assignment of its colors to objects, classes and outcomes."""

from collections.abc import Sequence

import numpy as np

Color = tuple[int, int, int]  # RGB, each in [0, 255]

# From an exchange search over a grid of vivid colors: the smallest CIE76 distance between any two is 30, with normal
# vision and with protanopia, deuteranopia or tritanopia (simulated after Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency", 2009, severity 1). The palette of Okabe and
# Ito reaches 16. Ordered so that each color is as far as possible from those before it.
PALETTE: tuple[Color, ...] = (
    (255, 225, 0),
    (105, 0, 255),
    (105, 255, 225),
    (195, 0, 45),
    (255, 150, 255),
    (75, 165, 120),
    (225, 120, 15),
    (150, 60, 120),
    (180, 240, 135),
    (135, 60, 195),
)
YELLOW, VIOLET, AQUA, RED, PINK, GREEN, ORANGE = PALETTE[:7]

GROUND_TRUTH = YELLOW
# A detection compared with the ground truth: true positive, right place with another class, false positive, inside a
# crowd region; and a false negative, which is a ground truth object without a detection.
OUTCOMES: dict[str, Color] = {"TP": GREEN, "wrong class": ORANGE, "FP": RED, "ignored": AQUA, "FN": PINK}

# Background, panels, text and flags of the inspection's web page, as CSS colors.
THEMES: dict[str, dict[str, str]] = {
    "light": {
        "bg": "#fbfbfa", "card": "#ffffff", "text": "#1d2125", "soft": "#5b6670", "line": "#dde1e4",
        "accent": "#0b63a5", "flag": "#a33a00", "flag-bg": "#fdeee4",
    },
    "dark": {
        "bg": "#14171a", "card": "#1c2024", "text": "#e6e9eb", "soft": "#9aa5ae", "line": "#343b41",
        "accent": "#6cb8f0", "flag": "#ffb38a", "flag-bg": "#40281a",
    },
}  # fmt: skip

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def class_color(index: int | None) -> Color:
    """Return the color of a class, or of the first class for None."""
    return PALETTE[(index or 0) % len(PALETTE)]


def to_hex(color: Color) -> str:
    """Return a color as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def luminance(color: Color) -> float:
    """Compute the relative luminance of an sRGB color, in [0, 1] (WCAG 2.2, "relative luminance")."""
    values = np.asarray(color) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def text_color(background: Color) -> Color:
    """Return black or white, whichever has the higher contrast with ``background``."""
    light = luminance(background)
    return _BLACK if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else _WHITE


class ColorAssigner:
    """Give every object a color of the palette and keep it for as long as the object is tracked.

    A new object gets a color that no other object in the image has. When all colors are in use, it gets the color whose
    owners are farthest away.

    Args:
        memory: frames after which an object that was not detected loses its color.
    """

    def __init__(self, memory: int = 300) -> None:
        self.memory = memory
        self._frame = 0
        self._color: dict[int, int] = {}  # track id -> index into the palette
        self._last_frame: dict[int, int] = {}  # track id -> frame of its last detection

    def assign(self, boxes: np.ndarray, track_ids: np.ndarray | None = None) -> list[int]:
        """Assign colors to the objects of the next frame.

        Args:
            boxes: (N, 4) XYXY in pixels.
            track_ids: (N,) int; None for a single image, which starts afresh.

        Returns:
            N indices into :data:`PALETTE`.
        """
        if track_ids is None:
            self._color.clear()
            self._last_frame.clear()
        self._frame += 1
        ids = list(range(len(boxes))) if track_ids is None else track_ids.tolist()
        colors = choose_colors(boxes, [self._color.get(track) for track in ids])
        self._color.update(zip(ids, colors, strict=True))
        self._last_frame.update(dict.fromkeys(ids, self._frame))
        for track in [t for t, frame in self._last_frame.items() if self._frame - frame > self.memory]:
            del self._last_frame[track], self._color[track]
        return colors


def choose_colors(boxes: np.ndarray, colors: Sequence[int | None]) -> list[int]:
    """Choose colors for the objects that have none: those whose nearest owner is farthest away.

    Args:
        boxes: (N, 4) XYXY in pixels.
        colors: for each object an index into :data:`PALETTE`, or None.
    """
    chosen = np.array([-1 if color is None else color for color in colors], dtype=np.int64)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for row in np.flatnonzero(chosen < 0):
        owners = np.flatnonzero(chosen >= 0)
        nearest = np.full(len(PALETTE), np.inf)  # distance to the nearest owner of each color
        np.minimum.at(nearest, chosen[owners], np.hypot(*(centers[owners] - centers[row]).T))
        chosen[row] = nearest.argmax()
    return chosen.tolist()
