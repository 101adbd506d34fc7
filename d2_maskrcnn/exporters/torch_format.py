"""Write the detector as a ``.pt2`` file of ``torch.export``."""

import io
from pathlib import Path

import torch

from d2_maskrcnn.exporters.detector_graph import DetectorGraph
from d2_maskrcnn.exporters.onnx_format import trace
from d2_maskrcnn.runtimes.metadata import METADATA_KEY, FileInfo
from d2_maskrcnn.weights.atomic import atomic_write_bytes


def write_torch(
    model: torch.nn.Module, path: Path, info: FileInfo, *, dtype: torch.dtype = torch.float32, paste: bool = False
) -> None:
    """Write a model as a ``.pt2`` file, which runs with PyTorch and torchvision alone.

    ``import torchvision`` must come before ``torch.export.load``: the file uses ``nms`` and ``roi_align``.

    Args:
        model, info, dtype, paste: see :func:`d2_maskrcnn.exporters.onnx_format.write_onnx`.

    Raises:
        UserError: a component of the model cannot be exported.
    """
    program = trace(DetectorGraph(model, dtype=dtype, paste=paste), info.batch, info.size)
    remove_assertions(program)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_KEY: info.to_json()})
    atomic_write_bytes(path, buffer.getvalue())


def remove_assertions(program: torch.export.ExportedProgram) -> None:
    """Remove the tracer's assertions on the numbers of proposals and detections, which forbid none and one."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
