"""Keep the checkpoint with the best metric, also across resumed runs."""

import logging
import pickle
from pathlib import Path

import torch

from d2_maskrcnn.engine.hooks.ema import SUFFIX, save_average
from d2_maskrcnn.engine.hooks.followed_metric import MetricHook, from_main_process
from d2_maskrcnn.evaluation.metric_names import resolve_metric
from detectron2.config import CfgNode

BEST_NAME = "model_best"

logger = logging.getLogger(__name__)


class BestCheckpoint(MetricHook):
    """Save ``model_best.pth`` whenever the metric improves and, with averaged weights, ``model_best_ema.pth``.

    A process that is killed after it saved the best model leaves a file that is newer than the checkpoint to resume
    from. On a GPU, where sums are not reproducible, the resumed run may not quite reach that value again, so the value
    in the file counts as well.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "BestCheckpoint | None":
        """Build the hook of ``D2_MASKRCNN.BEST_CHECKPOINT``; None if it is off.

        Raises:
            UserError: no evaluation of ``DATASETS.TEST`` computes that metric.
        """
        node = cfg.D2_MASKRCNN.BEST_CHECKPOINT
        if not node.ENABLED or not cfg.DATASETS.TEST:
            return None
        return cls(resolve_metric(cfg, "BEST_CHECKPOINT"), node.MODE)

    def before_train(self) -> None:
        """Take over the best value of ``model_best.pth`` if it is better than that of the resumed checkpoint."""
        if not self.trainer.resumed:
            return
        path = Path(self.trainer.cfg.OUTPUT_DIR) / f"{BEST_NAME}.pth"
        saved = from_main_process(_best_in_file(path, self.metric))
        if saved is not None and self.is_better(saved[0]):
            self.best, self.best_iter = saved

    def update(self, value: float) -> None:
        """Save a checkpoint if ``value`` is the best so far."""
        if not self.is_better(value):
            return
        self.best, self.best_iter = value, self.trainer.iter
        logger.info("%s: %.4g, the best so far; saved as %s.pth", self.metric, value, BEST_NAME)
        save_average(self.trainer, BEST_NAME, self.best_iter)
        self.trainer.checkpointer.save(
            BEST_NAME, iteration=self.best_iter, best_metric={"name": self.metric, "value": value}
        )

    def files(self) -> list[Path]:
        """Return the files of the best model that exist: the checkpoint and, with an average, the averaged weights."""
        names = [BEST_NAME, *([BEST_NAME + SUFFIX] if self.trainer.average is not None else [])]
        paths = [Path(self.trainer.cfg.OUTPUT_DIR) / f"{name}.pth" for name in names]
        return [path for path in paths if path.is_file()]


def _best_in_file(path: Path, metric: str) -> tuple[float, int] | None:
    """Read the value of ``metric`` and the iteration that a best checkpoint was saved with; None if it has none."""
    if not path.is_file():
        return None
    try:  # mapped instead of read: only a few bytes are needed
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        saved = content["best_metric"]
        return (float(saved["value"]), int(content["iteration"])) if saved["name"] == metric else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        logger.warning("%s cannot be read (%s): using the best value of the checkpoint", path, type(error).__name__)
        return None
