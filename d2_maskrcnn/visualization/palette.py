"""Colours that everybody can tell apart, and which object gets which."""

import numpy as np

# RGB. Found by exchange search over a grid of vivid colours: the smallest CIE76 distance between any two is 30, seen
# normally and with protanopia, deuteranopia or tritanopia (simulated after Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency", 2009, severity 1). The well-known palette of
# Okabe and Ito keeps 16. In the order of greatest distance to those before.
PALETTE: tuple[tuple[int, int, int], ...] = (
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

_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, in [0, 1] (WCAG 2.2, "relative luminance")."""
    values = np.asarray(colour) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the greater contrast on ``background`` (RGB)."""
    light = luminance(background)
    return _DARK if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else _LIGHT


class ColourBook:
    """Gives every object a colour of the palette, and keeps it while the object is seen.

    A new object gets a colour that nothing in the image has; when all are taken, the one whose owners are farthest
    away.

    Args:
        memory: frames after which an object that was not seen loses its colour.
    """

    def __init__(self, memory: int = 300) -> None:
        self.memory = memory
        self._frame = 0
        self._colour: dict[int, int] = {}  # track id -> index into the palette
        self._seen: dict[int, int] = {}  # track id -> frame it was last seen in

    def assign(self, boxes: np.ndarray, track_ids: np.ndarray | None = None) -> list[int]:
        """Colours for the objects of the next frame.

        Args:
            boxes: (N, 4) XYXY. track_ids: (N,), or None to start afresh, as for a single image.

        Returns:
            N indices into :data:`PALETTE`.
        """
        if track_ids is None:
            self._colour.clear()
            self._seen.clear()
        self._frame += 1
        ids = range(len(boxes)) if track_ids is None else track_ids.tolist()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        owned = {row: self._colour[i] for row, i in enumerate(ids) if i in self._colour}
        for row, track in enumerate(ids):
            if row not in owned:
                owned[row] = self._colour[track] = self._choose(row, centres, owned)
            self._seen[track] = self._frame
        self._forget()
        return [owned[row] for row in range(len(boxes))]

    def _choose(self, row: int, centres: np.ndarray, owned: dict[int, int]) -> int:
        nearest = np.full(len(PALETTE), np.inf)  # distance to the closest owner of each colour
        for other, colour in owned.items():
            nearest[colour] = min(nearest[colour], float(np.hypot(*(centres[other] - centres[row]))))
        return int(nearest.argmax())

    def _forget(self) -> None:
        for track in [t for t, frame in self._seen.items() if self._frame - frame > self.memory]:
            del self._seen[track], self._colour[track]
