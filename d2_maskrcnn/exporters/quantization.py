"""Static int8 quantization after training (Jacob et al. 2018, arXiv:1712.05877): ranges are measured on images.

The convolutions and matrix products of the backbone, the pyramid, the RPN, the box head and the mask head are computed
in int8, with a scale per output channel. The layers whose outputs are scores, boxes and masks stay in float, and so
does the first convolution, which sees raw pixels.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.errors import import_extra
from d2_maskrcnn.exporters.onnx_format import set_metadata
from d2_maskrcnn.exporters.openvino_format import PREDICTORS, save_openvino
from d2_maskrcnn.runtimes.metadata import FileInfo
from d2_maskrcnn.weights.atomic import atomic_write_bytes

# Parts of the names of weights that stay in float.
SENSITIVE = (*PREDICTORS, "stem.conv1", "deconv", "mask_head.predictor")
LAYERS = ("Conv", "Gemm")

Inputs = dict[str, np.ndarray]


class _Reader:
    """Give the calibration data to onnxruntime."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._inputs: Iterator[Inputs] = iter(inputs)

    def get_next(self) -> Inputs | None:
        return next(self._inputs, None)


def quantize_onnx(source: Path, path: Path, inputs: Sequence[Inputs], info: FileInfo) -> None:
    """Quantize an ONNX file by onnxruntime.

    Args:
        source: the float32 file. path: the file to write. inputs: ``images`` and ``sizes`` of calibration batches.
        info: metadata of the new file.

    Raises:
        UserError: a package is missing.
    """
    onnx, quantization = import_extra("onnx", "onnx"), import_extra("onnxruntime.quantization", "onnx")
    nodes = layers_to_quantize(onnx.load(str(source)))

    reader = type("Reader", (_Reader, quantization.CalibrationDataReader), {})
    with tempfile.TemporaryDirectory() as folder, _quiet_logging():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            str(source),
            str(target),
            reader(inputs),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # most activations follow a ReLU
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=nodes,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        proto = onnx.load(str(target))
    set_metadata(proto, info)
    atomic_write_bytes(path, proto.SerializeToString())


def layers_to_quantize(proto: Any) -> list[str]:
    """Return the names of the nodes to compute in int8: layers, and the sums of residual blocks and of the pyramid."""
    weights = {each.name for each in proto.graph.initializer}
    layers = [
        node.name
        for node in proto.graph.node
        if node.op_type in LAYERS and node.input[1] in weights and not any(part in node.input[1] for part in SENSITIVE)
    ]
    features = {name for node in proto.graph.node if node.op_type in ("Conv", "Resize") for name in node.output}
    sums = []
    for node in proto.graph.node:  # in order of execution
        if node.op_type == "Add" and all(name in features for name in node.input):
            sums.append(node.name)
        if node.op_type in ("Relu", "MaxPool", "Add") and all(name in features for name in node.input):
            features.update(node.output)
    return layers + sums


def quantize_openvino(source: Path, path: Path, inputs: Sequence[Inputs], info: FileInfo) -> None:
    """Quantize an ONNX file by NNCF, and write it as an OpenVINO file.

    Args:
        source, path, inputs, info: see :func:`quantize_onnx`.

    Raises:
        UserError: a package is missing.
    """
    onnx, openvino, nncf = (
        import_extra("onnx", "onnx"),
        import_extra("openvino", "openvino"),
        import_extra("nncf", "openvino"),
    )
    chosen = set(layers_to_quantize(onnx.load(str(source))))
    model = openvino.convert_model(str(source))
    kept = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if not chosen & {op.get_friendly_name(), op.get_friendly_name().removesuffix("/WithoutBiases")}
        and op.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    with _quiet_logging():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        )
    save_openvino(quantized, path, info.to_json())


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Hide the progress messages of the quantizers, which log to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
