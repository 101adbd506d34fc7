"""Pass processed frames to everything that shows or writes them."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from d2_maskrcnn.video.frame import Frame
from d2_maskrcnn.video.sinks.annotated_images import ImageFiles
from d2_maskrcnn.video.sinks.annotation_files import AnnotationFiles
from d2_maskrcnn.video.sinks.tables import CocoResults, CsvRows, JsonLines
from d2_maskrcnn.video.sinks.window import Window


@dataclass
class Sinks:
    """Everything that receives processed frames; created before the work starts, so that bad paths are known early."""

    image_files: ImageFiles | None = None
    annotations: AnnotationFiles | None = None
    video: Any = None
    json: JsonLines | CocoResults | None = None
    csv: CsvRows | None = None
    window: Window | None = None

    def write(self, frame: Frame) -> bool:
        """Pass a frame to all sinks; return False if the user has closed the window."""
        for sink in (self.image_files, self.annotations, self.video, self.json, self.csv):
            # A video keeps frames that could not be processed; an image or record of them would be wrong.
            if sink is not None and (sink is self.video or not frame.problem):
                sink.write(frame)
        return self.window is None or not frame.image.size or self.window.show(frame)

    def close_window(self) -> None:
        """Close the window, if there is one."""
        if self.window is not None:
            self.window.close()
            self.window = None

    def close(self) -> None:
        """Complete all files, even if one of them fails."""
        with ExitStack() as stack:
            stack.callback(self.close_window)
            for sink in (self.image_files, self.annotations, self.video, self.json, self.csv):
                if sink is not None:
                    stack.callback(sink.close)
