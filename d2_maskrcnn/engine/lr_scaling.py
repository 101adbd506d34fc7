"""A learning rate that follows the batch size."""

import logging
import math

from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def scale_learning_rate(cfg: CfgNode) -> CfgNode:
    """Scales ``SOLVER.BASE_LR`` from the batch size that it was chosen for to ``SOLVER.IMS_PER_BATCH``.

    For SGD in proportion (Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.1), for AdamW by the square
    root (Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms", section 4.2).

    Args:
        cfg: stays as it is; ``D2_MASKRCNN.SOLVER.REFERENCE_BATCH`` is the batch size of ``BASE_LR``, 0 for no scaling.

    Returns:
        ``cfg`` itself where nothing is to be scaled; else a frozen copy whose reference is its batch size.

    Raises:
        UserError: the reference is negative.
    """
    reference, batch = cfg.D2_MASKRCNN.SOLVER.REFERENCE_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference < 0:
        raise UserError(f"D2_MASKRCNN.SOLVER.REFERENCE_BATCH is {reference}; expected a batch size, or 0 for none.")
    if reference in (0, batch):
        return cfg
    ratio = batch / reference
    factor = math.sqrt(ratio) if cfg.D2_MASKRCNN.SOLVER.OPTIMIZER == "AdamW" else ratio
    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR * factor
    scaled.D2_MASKRCNN.SOLVER.REFERENCE_BATCH = batch
    scaled.freeze()
    logger.info(
        "Learning rate %g, chosen for batches of %d, scaled by %.4g to %g for batches of %d",
        cfg.SOLVER.BASE_LR,
        reference,
        factor,
        scaled.SOLVER.BASE_LR,
        batch,
    )
    return scaled
