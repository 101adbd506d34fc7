"""Write detections as annotations to correct in a tool, and rank images by how much their annotation would help."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from d2_maskrcnn.data.conversion import TARGETS
from d2_maskrcnn.data.formats.cleaning import clean
from d2_maskrcnn.data.formats.dataset import Dataset, ImageFile, common_folder
from d2_maskrcnn.data.formats.image_references import Reference, add_images
from d2_maskrcnn.data.formats.output import Output
from d2_maskrcnn.data.formats.predictions import add_predictions, prediction_dataset
from d2_maskrcnn.errors import UserError, escape_formula
from d2_maskrcnn.video.frame import Frame

RANKING = "ranking.csv"


class AnnotationFiles:
    """Collect the detections of images and write them as annotations when all are done.

    Args:
        names: paths of the images.
        folder: to write to.
        to: format of the annotations, a key of :data:`~d2_maskrcnn.data.conversion.TARGETS`; None for a ranking alone.
        class_names, category_ids: of the model's classes.
        rank: whether images are ordered by the uncertainty of their detections, the most uncertain first, and listed
            in ``ranking.csv``.
        overwrite: whether existing files may be replaced.

    Raises:
        UserError: an image is not a file, or an output file exists. Known before the first image is processed.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        to: str | None,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        rank: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._folder, self._to, self._rank, self._overwrite = folder, to, rank, overwrite
        self._dataset = prediction_dataset("predictions", class_names, category_ids)
        self._images = _find(names)
        self._uncertainty: dict[int, float] = {}
        planned = prediction_dataset("predictions", class_names, category_ids)
        planned.images = list(self._images.values())
        self._output(planned).check(self._sources(), overwrite)

    def write(self, frame: Frame) -> None:
        """Add the detections of an image."""
        image = self._images.get(frame.name)
        if image is None:
            return
        image.height, image.width = frame.size
        self._uncertainty[image.id] = frame.uncertainty
        add_predictions(self._dataset, image, frame.records)

    def close(self) -> None:
        """Write the files.

        Raises:
            UserError: one cannot be written.
        """
        clean(self._dataset)
        if self._rank:
            self._dataset.images.sort(key=lambda image: -self._uncertainty[image.id])
        if self._dataset.images:
            self._output(self._dataset).write(self._sources(), self._overwrite)

    def _output(self, dataset: Dataset) -> Output:
        output = Output(self._folder)
        if self._to is not None:
            TARGETS[self._to](dataset, output, Counter())
        if self._rank:
            output.add(RANKING, self._ranking(dataset))
        return output

    def _ranking(self, dataset: Dataset) -> str:
        counts = Counter(annotation.image_id for annotation in dataset.annotations)
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(("rank", "file", "uncertainty", "detections"))
        for rank, image in enumerate(dataset.images, start=1):
            score = round(self._uncertainty.get(image.id, 0.0), 5)
            rows.writerow((rank, escape_formula(str(image.path)), score, counts[image.id]))
        return text.getvalue()

    def _sources(self) -> set[Path]:
        return {image.path for image in self._images.values()}


def _find(names: Sequence[str]) -> dict[str, ImageFile]:
    """Return the images that can be read, by name; the others are reported when they are decoded."""
    for name in names:
        if "://" in name:
            raise UserError(f"{name}: annotations refer to image files; download the image and give its path")
    paths = [Path(name).absolute() for name in names]
    root = common_folder(paths)
    dataset = Dataset("predictions", "predictions")
    references = [Reference(path.relative_to(root).as_posix(), str(path), folders=[root]) for path in paths]
    added = add_images(dataset, references, [root])
    return {names[index]: image for index, image in added.items()}
