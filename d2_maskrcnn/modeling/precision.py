"""Convert a model to half precision for inference; boxes, scores and mask probabilities stay float32."""

import logging
import platform

import torch
from torch import nn

from d2_maskrcnn.config.rules import PRECISIONS
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.meta_arch import MaskRCNN

logger = logging.getLogger(__name__)


def set_precision(model: nn.Module, precision: str) -> torch.dtype:
    """Convert a model in evaluation mode for inference, in place.

    The backbone, the RPN head, the box head and the mask head compute in the chosen type, with constant norms folded
    into their convolutions before the conversion. The classification and box regression layers, the decoding of boxes,
    NMS and mask probabilities stay float32.

    Args:
        model: converted if it is a :class:`MaskRCNN`; other models keep float32, with a warning.
        precision: one of ``PRECISIONS``, as in ``D2_MASKRCNN.INFERENCE.PRECISION``.

    Returns:
        The type in use.

    Raises:
        UserError: an unknown precision, or float16 on a CPU.
    """
    device = next(model.parameters()).device
    dtype = _choose_dtype(precision, device)
    if dtype is torch.float32:
        return dtype
    if not isinstance(model, MaskRCNN):
        logger.warning("%s computes in float32: only MaskRCNN can be converted to %s.", type(model).__name__, precision)
        return torch.float32
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ConvNorm):
                module.fold_norm()
    rpn, heads = model.proposal_generator, model.roi_heads
    parts = (model.backbone, getattr(rpn, "rpn_head", None), heads.box_head, getattr(heads, "mask_head", None))
    for part in parts:
        if part is not None:
            part.to(dtype)
    model.input_dtype = dtype
    return dtype


def _choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in PRECISIONS:
        raise UserError(f"Precision {precision!r}: expected one of {', '.join(PRECISIONS)}.")
    if precision == "float32":
        return torch.float32
    if device.type == "cpu":
        if precision == "float16":
            raise UserError("Precision 'float16' is for GPUs; expected 'float32', 'bfloat16' or 'auto' on a CPU.")
        if has_native_bfloat16():
            return torch.bfloat16
        if precision == "bfloat16":
            logger.warning("This CPU has no bfloat16 instructions, so bfloat16 would be slower: float32 is used.")
        return torch.float32
    if precision == "auto":
        fast = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if precision == "bfloat16" else torch.float16


def has_native_bfloat16() -> bool:
    """Return whether the CPU, limited to the instruction set that PyTorch uses, multiplies bfloat16 natively."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # ATEN_CPU_CAPABILITY can limit it
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
