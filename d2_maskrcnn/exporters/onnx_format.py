"""Write the detector as an ONNX file of standard operators.

ROIAlign becomes ``RoiAlign``, whose ``half_pixel`` mode is this plugin's ``aligned``; suppression becomes
``NonMaxSuppression``, with images and levels, or images and classes, as its batch, so that boxes need no offsets.
"""

import contextlib
import importlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from d2_maskrcnn.errors import import_extra
from d2_maskrcnn.exporters import operations
from d2_maskrcnn.exporters.detector_graph import DetectorGraph
from d2_maskrcnn.runtimes.metadata import METADATA_KEY, FileInfo
from d2_maskrcnn.weights.atomic import atomic_write_bytes

OPSET = 18


@torch.library.custom_op("d2_maskrcnn::suppress", mutates_args=())
def suppress(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, limit: int) -> torch.Tensor:
    """Mark the place of ``NonMaxSuppression`` in the exported graph; see :func:`operations.suppress`."""
    return operations.suppress(boxes, scores, threshold, limit)


@suppress.register_fake
def _suppress_shape(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, limit: int) -> torch.Tensor:
    return torch.empty_like(scores)


def _suppress_nodes(boxes: Any, scores: Any, threshold: float, limit: int) -> Any:
    """Build the ONNX nodes of :func:`suppress`."""
    op: Any = import_extra("onnxscript", "onnx").opset18

    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[operations.DROPPED / 2]),
    )  # (boxes that remain, 3): group, 0, index
    places = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    dropped = op.Expand(op.Constant(value_float=operations.DROPPED), op.Shape(scores))
    return op.ScatterND(dropped, places, op.GatherND(scores, places))


def trace(detector: DetectorGraph, batch: int | None, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """Trace the detector.

    Args:
        batch: the number of images; None for any. size: (H, W) of the images; None for any.
    """
    height, width = size or (96, 160)
    dtype = torch.float32 if detector.raw else torch.uint8
    images = torch.zeros((batch or 2, len(detector.mean), height, width), dtype=dtype)
    sizes = torch.tensor([[height, width]]).expand(batch or 2, -1).contiguous()
    shapes: dict[str, dict[int, Any]] = {"images": {}, "sizes": {}}
    if batch is None:
        shapes["images"][0] = shapes["sizes"][0] = Dim("batch", min=1)
    if size is None:
        shapes["images"] |= {2: Dim("height", min=1), 3: Dim("width", min=1)}
    fx_config: Any = importlib.import_module("torch.fx.experimental._config")
    # Oblivious: otherwise the batch and the sides of all levels would have to be greater than 1.
    with torch.no_grad(), fx_config.patch(backed_size_oblivious=True):
        return torch.export.export(detector, (images, sizes), dynamic_shapes=shapes, strict=False)


def write_onnx(
    model: torch.nn.Module, path: Path, info: FileInfo, *, dtype: torch.dtype = torch.float32, paste: bool = False
) -> None:
    """Write a model as an ONNX file.

    Args:
        model: a model of this plugin. info: what the file's metadata says. dtype: of convolutions and matrix products.
        paste: whether the file also returns masks pasted at the size of its input images.

    Raises:
        UserError: a package is missing, or a component of the model cannot be exported.
    """
    onnx = import_extra("onnx", "onnx")
    import_extra("onnxscript", "onnx")
    detector = DetectorGraph(model, suppress, dtype, paste)
    with _quiet():
        program = torch.onnx.export(
            trace(detector, info.batch, info.size),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images", "sizes"],
            output_names=detector.output_names,
            custom_translation_table={torch.ops.d2_maskrcnn.suppress.default: _suppress_nodes},
            optimize=False,
        )
        assert program is not None
        _simplify(program.model)
    proto = program.model_proto
    _name_dimensions(proto)
    set_metadata(proto, info)
    onnx.checker.check_model(proto)
    atomic_write_bytes(path, proto.SerializeToString())


def _simplify(model: Any) -> None:
    """Replace functions by their nodes and compute constant ones; runtimes do the other optimizations themselves."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model)
    for each in (common.RemoveUnusedNodesPass, common.RemoveUnusedFunctionsPass, common.RemoveUnusedOpsetsPass):
        each()(model)


def _name_dimensions(proto: Any) -> None:
    """Name the dynamic dimensions and leave out the shapes of inner tensors, which name them by internal symbols."""
    del proto.graph.value_info[:]
    names = {"images": ("batch", "", "height", "width"), "sizes": ("batch",), "pasted_masks": ("", "height", "width")}
    for value in (*proto.graph.input, *proto.graph.output):
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                known = names.get(value.name, ())[index : index + 1]
                dim.dim_param = (known and known[0]) or "detections"


def set_metadata(proto: Any, info: FileInfo) -> None:
    """Store ``info`` in an ONNX model."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=info.to_json())
    proto.producer_name, proto.doc_string = "d2_maskrcnn", ""


@contextlib.contextmanager
def _quiet() -> Any:
    """Hide the progress lines and the warnings of PyTorch's exporter."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("torch.onnx").setLevel(level)
