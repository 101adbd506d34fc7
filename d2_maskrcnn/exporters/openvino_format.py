"""Write the detector as an OpenVINO file, converted from ONNX."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.errors import import_extra
from d2_maskrcnn.exporters.onnx_format import write_onnx
from d2_maskrcnn.runtimes.metadata import METADATA_KEY, FileInfo

# Layers whose outputs are scores and coordinates: parts of the names of weights that are not stored with fewer bits.
PREDICTORS = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred")
WEIGHTS = {("Convolution", 1), ("ConvolutionBackpropData", 1), ("MatMul", 1)}  # types of nodes, and the input


def write_openvino(
    model: torch.nn.Module, path: Path, info: FileInfo, *, dtype: torch.dtype = torch.float32, paste: bool = False
) -> None:
    """Write a model as ``path`` (``.xml``) and the weights beside it (``.bin``).

    Args:
        dtype: of the stored weights; the runtime chooses in which precision it computes.
        model, info, paste: see :func:`d2_maskrcnn.exporters.onnx_format.write_onnx`.

    Raises:
        UserError: a package is missing, or a component of the model cannot be exported.
    """
    import_extra("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "model.onnx"
        write_onnx(model, onnx_path, info, paste=paste)
        convert_onnx(onnx_path, path, half=dtype == torch.float16)


def convert_onnx(onnx_path: Path, path: Path, *, half: bool = False) -> None:
    """Convert an ONNX file to an OpenVINO file with the same metadata.

    Args:
        half: whether weights are stored as float16; see :func:`halve_weights`.
    """
    openvino, onnx = import_extra("openvino", "openvino"), import_extra("onnx", "onnx")
    proto = onnx.load(str(onnx_path), load_external_data=False)
    metadata = next(each.value for each in proto.metadata_props if each.key == METADATA_KEY)
    converted = openvino.convert_model(str(onnx_path))
    if half:
        halve_weights(converted)
    save_openvino(converted, path, metadata)


def halve_weights(converted: Any) -> None:
    """Store the weights of layers as float16, but those of ``PREDICTORS``.

    OpenVINO's own compression rounds every constant: anchors by up to 0.13 pixels, pixel means, biases, thresholds.
    """
    opset = import_extra("openvino.opset13", "openvino")
    for op in converted.get_ordered_ops():
        if op.get_type_name() != "Constant" or op.get_element_type().get_type_name() != "f32":
            continue
        uses = [(each.get_node().get_type_name(), each.get_index()) for each in op.output(0).get_target_inputs()]
        if all(use in WEIGHTS for use in uses) and not any(name in op.get_friendly_name() for name in PREDICTORS):
            stored = opset.constant(op.data.astype(np.float16), name=op.get_friendly_name())
            op.output(0).replace(opset.convert(stored, "f32").output(0))


def save_openvino(converted: Any, path: Path, metadata: str) -> None:
    """Write an OpenVINO model. Args: metadata: JSON of a :class:`FileInfo`."""
    converted.set_rt_info(metadata, METADATA_KEY)
    import_extra("openvino", "openvino").save_model(converted, str(path), compress_to_fp16=False)
