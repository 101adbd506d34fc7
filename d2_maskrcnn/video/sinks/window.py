"""Show frames in a window."""

import os
import re
import subprocess
import sys

import cv2

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.frame import Frame

ESCAPE_KEYS = (27, ord("q"))
KEY_WAIT = 50  # milliseconds between checks whether the window is still open


def has_windows() -> bool:
    """Return whether OpenCV is built with windows, as ``opencv-python`` is and ``opencv-python-headless`` isn't."""
    return re.search(r"^\s*GUI:\s*NONE\s*$", cv2.getBuildInformation(), re.MULTILINE) is None


def check_display() -> None:
    """Check that a window can be opened, in a separate process, because Qt aborts if it cannot.

    Raises:
        UserError: it cannot, or OpenCV is built without windows.
    """
    if not has_windows():
        raise UserError(
            "This OpenCV is built without windows: pip uninstall opencv-python-headless, then pip install "
            "--force-reinstall opencv-python; or write the results to an output file or folder."
        )
    missing = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    probe = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1); cv2.destroyAllWindows()"
    if missing or subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode:
        raise UserError("No display to show a window on: write the results to an output file or folder instead.")


class Window:
    """Show frames on the screen.

    Args:
        title: title of the window.
        wait: whether each frame stays until a key is pressed, as for images.
    """

    def __init__(self, title: str, wait: bool) -> None:
        self._title, self._wait = title, wait
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)

    def show(self, frame: Frame) -> bool:
        """Show a frame; return False if the user pressed Esc or q, or closed the window."""
        if not self._is_open():  # drawing into it would open it again
            return False
        cv2.imshow(self._title, frame.image)
        key = cv2.waitKey(KEY_WAIT if self._wait else 1)
        while self._wait and key < 0 and self._is_open():  # an endless wait wouldn't notice a closed window
            key = cv2.waitKey(KEY_WAIT)
        return self._is_open() and key & 0xFF not in ESCAPE_KEYS

    def close(self) -> None:
        """Close the window if it is still open."""
        if self._is_open():
            cv2.destroyWindow(self._title)

    def _is_open(self) -> bool:
        try:
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # what some back-ends raise for a closed window
            return False
