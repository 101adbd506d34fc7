"""Write the detector as an OpenVINO file, converted from ONNX."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn.errors import import_extra
from d2_maskrcnn.exporters.onnx_format import write_onnx
from d2_maskrcnn.runtimes.metadata import METADATA_KEY, FileInfo


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
        half: whether weights are stored as float16.
    """
    openvino, onnx = import_extra("openvino", "openvino"), import_extra("onnx", "onnx")
    proto = onnx.load(str(onnx_path), load_external_data=False)
    metadata = next(each.value for each in proto.metadata_props if each.key == METADATA_KEY)
    save_openvino(openvino.convert_model(str(onnx_path)), path, metadata, half=half)


def save_openvino(converted: Any, path: Path, metadata: str, *, half: bool) -> None:
    """Write an OpenVINO model. Args: metadata: JSON of a :class:`FileInfo`. half: whether weights become float16."""
    converted.set_rt_info(metadata, METADATA_KEY)
    import_extra("openvino", "openvino").save_model(converted, str(path), compress_to_fp16=half)
