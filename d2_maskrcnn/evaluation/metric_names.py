"""Names of the metrics that an evaluation will log, for checking a config before training starts."""

import logging
from collections.abc import Collection

from d2_maskrcnn.data import dataset_records
from d2_maskrcnn.errors import UserError, did_you_mean
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "total_loss")

logger = logging.getLogger(__name__)


def evaluation_metrics(cfg: CfgNode) -> list[str]:
    """List what :class:`~d2_maskrcnn.engine.Trainer` logs at each evaluation of ``DATASETS.TEST``."""
    names = list(cfg.DATASETS.TEST)
    prefixes = {name: "" if len(names) == 1 else f"{name}/" for name in names}
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    metrics = [
        f"{prefix}{task}/{metric}"
        for name, prefix in prefixes.items()
        for task in tasks
        for metric in _coco_metrics(name)
    ]
    if cfg.D2_MASKRCNN.VALIDATION_LOSS:
        losses = [loss for loss in LOSSES if cfg.MODEL.MASK_ON or loss != "loss_mask"]
        metrics += [f"validation/{prefix}{loss}" for prefix in prefixes.values() for loss in losses]
    return metrics + [f"ema/{name}" for name in metrics] if cfg.D2_MASKRCNN.EMA.ENABLED else metrics


def _coco_metrics(dataset_name: str) -> list[str]:
    if MetadataCatalog.get(dataset_name).get("thing_classes") is None:
        dataset_records(dataset_name)  # loading a COCO JSON sets the class names
    classes = MetadataCatalog.get(dataset_name).get("thing_classes") or []
    return [*COCO_METRICS, *(f"AP-{name}" for name in classes if len(classes) > 1)]


def resolve_metric(cfg: CfgNode, key: str) -> str:
    """Return the full name of the metric under ``D2_MASKRCNN.<key>.METRIC``; warn if it is a loss to be maximized.

    A name without a dataset refers to the first of several test sets; ``segm/AP`` is ``bbox/AP`` for a model without
    masks. A name with an unknown prefix is accepted, since it may come from an evaluator of the user.

    Raises:
        UserError: the prefix is known but not the metric.
    """
    metric, known = cfg.D2_MASKRCNN[key].METRIC, evaluation_metrics(cfg)
    if "loss" in metric.split("/")[-1] and cfg.D2_MASKRCNN[key].MODE == "max":
        logger.warning("D2_MASKRCNN.%s: MODE max looks for the highest %s; set MODE to min?", key, metric)
    if metric in known or not _has_known_prefix(metric, known):
        return metric
    adapted = metric if cfg.MODEL.MASK_ON else metric.replace("segm/AP", "bbox/AP")
    first = f"{cfg.DATASETS.TEST[0]}/"
    matches = [name for name in known if adapted in (name, name.replace(first, "", 1))]
    if matches:
        logger.info("D2_MASKRCNN.%s.METRIC %s: following %s", key, metric, matches[0])
        return matches[0]
    raise UserError(f"D2_MASKRCNN.{key}.METRIC: there is no metric {metric!r}. {describe_metrics(metric, known)}")


def _has_known_prefix(metric: str, known: Collection[str]) -> bool:
    prefixes = {"bbox", "segm", "validation", "ema", *(name.split("/")[0] for name in known)}
    return metric.split("/")[0] in prefixes if "/" in metric else metric not in (*LOSSES, "grad_norm", "lr")


def describe_metrics(metric: str, known: Collection[str]) -> str:
    """Describe the known metrics in one line, beginning with the one most similar to ``metric``."""
    short = dict.fromkeys(name.split("AP-")[0] + "AP-<class>" if "AP-" in name else name for name in known)
    return f"{did_you_mean(metric, known)} Known: {', '.join(short) or 'none'}.".lstrip()
