"""Define the metadata of exported files: how to prepare images for them, and what their outputs mean."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from d2_maskrcnn.errors import UserError

METADATA_KEY = "d2_maskrcnn"  # of the JSON text in ONNX metadata, OpenVINO's rt_info and the extra files of a .pt2
FORMAT_VERSION = 1
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}

INPUTS = {
    "images": "(N, 3, H, W) uint8, resized as 'resize' says, channels in the order 'channels'; smaller images of a "
    "batch in the top left corner. The file normalizes and pads them.",
    "sizes": "(N, 2) int64, height and width of each resized image",
}
OUTPUTS = {
    "boxes": "(D, 4) float32, x0 y0 x1 y1 in pixels of 'images'",
    "scores": "(D,) float32 in [0, 1], descending within an image",
    "classes": "(D,) int64, indices into 'class_names'",
    "image_indices": "(D,) int64, ascending, the image in the batch that each detection belongs to",
    "masks": "(D, 28, 28) float32, probabilities on a grid over the box; 0.5 and above is the object",
    "pasted_masks": "(D, H, W) bool, the masks in 'images'",
}


@dataclass
class FileInfo:
    """The metadata of an exported file.

    Attributes:
        config: the model's config as YAML. class_names: may be empty.
        channels: order of the channels, ``BGR`` or ``RGB``; ``RAW`` for images of other channels or more bits.
        shortest_edge, longest_edge: images are resized so that their shorter side has ``shortest_edge`` pixels, but
            their longer side not more than ``longest_edge``, with Pillow's bilinear filter.
        batch, size: the number of images and their (height, width) if the file takes no others; else None.
        precision: ``float32``, ``float16`` or ``int8``.
        score_threshold, nms_threshold, detections_per_image: see ``MODEL.ROI_HEADS`` and ``TEST`` in the config.
        versions: of the packages that made the file.
        outputs: names of the outputs, in order.
    """

    config: str
    class_names: list[str]
    channels: str
    shortest_edge: int
    longest_edge: int
    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    outputs: list[str]
    batch: int | None = None
    size: tuple[int, int] | None = None
    precision: str = "float32"
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the metadata as JSON, with a description of inputs and outputs for people."""
        values = {name: value for name, value in vars(self).items() if name != "outputs"}
        resize = {
            "shortest_edge": values.pop("shortest_edge"),
            "longest_edge": values.pop("longest_edge"),
            "filter": "bilinear, antialiased (PIL.Image.BILINEAR)",
        }
        outputs = {name: OUTPUTS[name] for name in self.outputs}
        inputs = dict(INPUTS)
        if self.channels == "RAW":
            inputs["images"] = INPUTS["images"].replace("(N, 3, H, W) uint8", "(N, C, H, W) float32")
        described = {"format_version": FORMAT_VERSION, "inputs": inputs, "resize": resize, **values, "outputs": outputs}
        return json.dumps(described, indent=1)

    @classmethod
    def from_json(cls, text: str, path: str) -> "FileInfo":
        """Read what :meth:`to_json` wrote.

        Raises:
            UserError: the text is not this plugin's metadata, or a newer version wrote it.
        """
        try:
            values = json.loads(text)
            if values["format_version"] > FORMAT_VERSION:
                raise UserError(
                    f"{path}: written by a newer version of d2_maskrcnn (file version {values['format_version']}, "
                    f"expected at most {FORMAT_VERSION}); update d2_maskrcnn."
                )
            resize = values["resize"]
            names = set(cls.__dataclass_fields__) - {"outputs", "size"}
            return cls(
                shortest_edge=int(resize["shortest_edge"]),
                longest_edge=int(resize["longest_edge"]),
                outputs=list(values["outputs"]),
                size=tuple(values["size"]) if values["size"] else None,
                **{name: values[name] for name in names - {"shortest_edge", "longest_edge"}},
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged metadata ({type(error).__name__}: {error}); export it again.") from error


def is_exported(path: str | Path) -> bool:
    """Return whether a file name is that of an exported detector: ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2``."""
    return Path(str(path)).suffix.lower() in SUFFIXES
