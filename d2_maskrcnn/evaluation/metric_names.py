"""The names of the numbers that an evaluation gives, known before the first one."""

import logging
from collections.abc import Collection

from d2_maskrcnn.errors import UserError, did_you_mean
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "total_loss")

logger = logging.getLogger(__name__)


def evaluation_metrics(cfg: CfgNode) -> list[str]:
    """What :class:`~d2_maskrcnn.engine.Trainer` puts into the storage at each evaluation of ``DATASETS.TEST``."""
    names = list(cfg.DATASETS.TEST)
    prefixes = {name: "" if len(names) == 1 else f"{name}/" for name in names}
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    found = [
        f"{prefix}{task}/{metric}" for name, prefix in prefixes.items() for task in tasks for metric in _measures(name)
    ]
    if cfg.D2_MASKRCNN.VALIDATION_LOSS:
        losses = [loss for loss in LOSSES if cfg.MODEL.MASK_ON or loss != "loss_mask"]
        found += [f"validation/{prefix}{loss}" for prefix in prefixes.values() for loss in losses]
    return found + [f"ema/{name}" for name in found] if cfg.D2_MASKRCNN.EMA.ENABLED else found


def _measures(dataset_name: str) -> list[str]:
    if MetadataCatalog.get(dataset_name).get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # loading it makes the names of its classes known
    classes = MetadataCatalog.get(dataset_name).get("thing_classes") or []
    return [*COCO_METRICS, *(f"AP-{name}" for name in classes if len(classes) > 1)]


def resolve_metric(cfg: CfgNode, key: str) -> str:
    """The full name of the metric that ``cfg`` names under ``D2_MASKRCNN.<key>.METRIC``.

    A name without a dataset means the first of several test sets; ``segm/AP`` means ``bbox/AP`` for a model without
    masks. A name of which nothing is known passes: it may come from an evaluation of the user's own.

    Raises:
        UserError: an evaluation gives others of that kind, but not this one.
    """
    metric, known = cfg.D2_MASKRCNN[key].METRIC, evaluation_metrics(cfg)
    if metric in known or not _is_of_known_kind(metric, known):
        return metric
    meant = metric if cfg.MODEL.MASK_ON else metric.replace("segm/AP", "bbox/AP")
    first = f"{cfg.DATASETS.TEST[0]}/"
    found = [name for name in known if meant in (name, name.replace(first, "", 1))]
    if found:
        logger.info("D2_MASKRCNN.%s.METRIC %s: following %s", key, metric, found[0])
        return found[0]
    raise UserError(f"D2_MASKRCNN.{key}.METRIC: there is no metric {metric!r}. {describe_metrics(metric, known)}")


def _is_of_known_kind(metric: str, known: Collection[str]) -> bool:
    kinds = {"bbox", "segm", "validation", "ema", *(name.split("/")[0] for name in known)}
    return metric.split("/")[0] in kinds if "/" in metric else metric not in (*LOSSES, "grad_norm", "lr")


def describe_metrics(metric: str, known: Collection[str]) -> str:
    """The nearest name and all that there are, the APs of classes as one."""
    short = dict.fromkeys(name.split("AP-")[0] + "AP-<class>" if "AP-" in name else name for name in known)
    return f"{did_you_mean(metric, known)} There is: {', '.join(short) or 'nothing'}.".lstrip()


def warn_of_direction(key: str, metric: str, mode: str) -> None:
    """A loss of which the highest is sought is hardly meant."""
    if "loss" in metric.split("/")[-1] and mode == "max":
        logger.warning("D2_MASKRCNN.%s looks for the highest %s: MODE is max; set it to min?", key, metric)
