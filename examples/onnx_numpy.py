"""Detect objects with an exported ONNX file: onnxruntime, NumPy and Pillow, without PyTorch and without this package.

d2-maskrcnn export model_final.pth --format onnx --output model.onnx
python examples/onnx_numpy.py model.onnx image.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def paste(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the 28x28 mask inside its box (x0, y0, x1, y1) as an image: (height, width) bool."""
    x = (np.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * mask.shape[1] - 0.5  # each pixel's place in the mask
    y = (np.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * mask.shape[0] - 0.5
    columns = np.maximum(1 - abs(x[:, None] - np.arange(mask.shape[1])), 0)  # (width, 28), bilinear weights
    rows = np.maximum(1 - abs(y[:, None] - np.arange(mask.shape[0])), 0)  # (height, 28)
    return rows @ mask @ columns.T >= 0.5


def detect(session: onnxruntime.InferenceSession, image: Image.Image) -> dict[str, np.ndarray]:
    """Return the file's outputs for one image, with boxes in pixels of this image."""
    info = json.loads(session.get_modelmeta().custom_metadata_map["d2_maskrcnn"])
    width, height = image.size
    short, long = info["resize"]["shortest_edge"], info["resize"]["longest_edge"]
    scale = min(short / min(width, height), long / max(width, height)) if short else 1.0
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    pixels = pixels[:, :, ::-1] if info["channels"] == "BGR" else pixels
    inputs = {"images": pixels.transpose(2, 0, 1)[None], "sizes": np.array([size[::-1]])}
    outputs = dict(zip(info["outputs"], session.run(None, inputs), strict=True))
    outputs["boxes"] *= np.array([width / size[0], height / size[1]] * 2, dtype=np.float32)
    outputs["names"] = np.array([info["class_names"][i] if info["class_names"] else str(i) for i in outputs["classes"]])
    return outputs


if __name__ == "__main__":
    image = Image.open(sys.argv[2])
    result = detect(onnxruntime.InferenceSession(sys.argv[1]), image)
    for name, score, box, mask in zip(*(result[key] for key in ("names", "scores", "boxes", "masks")), strict=True):
        print(f"{name} {score:.4f} {box.round(2).tolist()} {paste(mask, box, *image.size).sum()} pixels")
