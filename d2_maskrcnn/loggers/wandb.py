"""Log a training to Weights & Biases (https://docs.wandb.ai).

Every value is logged with its iteration, which is the step metric of all charts. ``OUTPUT_DIR/wandb_run.json`` stores
the run's id, so that a resumed training logs into the same run. A failure of W&B ends its logging, never the training.
"""

import contextlib
import json
import logging
import os
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from d2_maskrcnn import compat
from d2_maskrcnn.errors import EXIT_INTERRUPTED, one_line
from d2_maskrcnn.loggers.wandb_media import class_tables, histograms, prediction_images
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

ID_FILE = "wandb_run.json"
INIT_SECONDS = 30  # to reach the server before the run is recorded offline instead
FINISH_SECONDS = 1800  # to upload the rest at the end; the files stay for `wandb sync`

logger = logging.getLogger(__name__)


class WandbRun:
    """A run of W&B in the main process.

    Args:
        cfg: the whole config, which is logged too; ``D2_MASKRCNN.WANDB`` configures the run.

    Attributes:
        wandb: the imported package; None before :meth:`start`.
        run: the ``wandb.Run``; None before :meth:`start`, after :meth:`finish`, and after a failure.
        exit_code: the status that :meth:`finish` reports.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.node = cfg, cfg.D2_MASKRCNN.WANDB
        self.wandb: Any = None
        self.run: Any = None
        self.exit_code = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "WandbRun | None":
        """Build the run of ``D2_MASKRCNN.WANDB``; None if it is off."""
        node = cfg.D2_MASKRCNN.WANDB
        return cls(cfg) if node.ENABLED and node.MODE != "disabled" else None

    @contextlib.contextmanager
    def guard(self, action: str) -> Iterator[None]:
        """Turn an exception inside the block into one warning, and stop logging."""
        try:
            yield
        except Exception as error:  # W&B is optional and its failures take many types: no training may end for them
            self.run = None
            logger.warning(
                "W&B: %s failed (%s: %s): training continues without it", action, type(error).__name__, one_line(error)
            )
            logger.debug("W&B failed", exc_info=True)

    def start(self, resume: bool) -> None:
        """Start a run; with ``resume``, continue the run of ``OUTPUT_DIR`` if there is one."""
        try:
            import wandb
        except ImportError as error:
            logger.warning("W&B is not installed (%s): training continues without it. pip install wandb", error)
            return
        self.wandb = wandb
        with self.guard("starting the run"):
            self.run = self._init(self._run_id(resume))
            self.run.define_metric("iteration")
            self.run.define_metric("*", step_metric="iteration")
            logger.info("W&B: run %s (%s), files in %s", self.run.id, self.run.settings.mode, self.run.dir)

    def _run_id(self, resume: bool) -> str:
        """Read the stored id, or store a new one."""
        file = Path(self.cfg.OUTPUT_DIR) / ID_FILE
        if resume and file.is_file():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged file: start a new run
                return str(json.loads(file.read_text())["id"])
        run_id = secrets.token_hex(4)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps({"id": run_id}))
        return run_id

    def _init(self, run_id: str) -> Any:
        # Without an API key, W&B would prompt for one on a terminal and wait.
        self.wandb.setup(self.wandb.Settings(silent=True))
        try:
            return self._init_in_mode(run_id, self.node.MODE)
        except Exception as error:
            if self.node.MODE != "online":
                raise
            logger.warning("W&B: no connection (%s): recording offline; upload later: wandb sync", one_line(error))
            self.wandb.teardown()  # its background process still uses the run's id
            return self._init_in_mode(run_id, "offline")

    def _init_in_mode(self, run_id: str, mode: str) -> Any:
        node = self.node
        folder = Path(node.DIR or self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        return self.wandb.init(
            id=run_id,
            resume="allow",
            reinit="create_new",  # never an unfinished run of an earlier training in this process
            mode=mode,
            dir=str(folder),
            project=node.PROJECT or None,
            entity=node.ENTITY or None,
            name=node.NAME or None,
            group=node.GROUP or None,
            tags=list(node.TAGS) or None,
            notes=node.NOTES or None,
            config=yaml.safe_load(self.cfg.dump()),
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        """Limit the time that a lost connection can block the training."""
        settings: dict[str, Any] = {"init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS))}
        if "finish_timeout" in self.wandb.Settings.model_fields:  # older versions wait without limit
            settings["finish_timeout"] = float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS))
        return self.wandb.Settings(silent=True, console="off", **settings)

    def log(self, iteration: int, values: dict[str, Any]) -> None:
        """Log numbers and media of one iteration."""
        if self.run is not None and values:
            with self.guard("logging"):
                self.run.log({"iteration": iteration, **values})

    def log_model(self, files: list[Path], metadata: dict[str, Any]) -> None:
        """Upload checkpoint files as one artifact with the alias ``best``."""
        if self.run is None or not files:
            return
        with self.guard("uploading the best checkpoint"):
            artifact = self.wandb.Artifact(f"model-{self.run.id}", type="model", metadata=metadata)
            for file in files:
                artifact.add_file(str(file), skip_cache=True)
            self.run.log_artifact(artifact, aliases=["best"])

    def finish(self) -> None:
        """End the run; it counts as failed if called while an exception propagates."""
        if self.run is None:
            return
        with self.guard("finishing the run"):
            self.run.finish(exit_code=1 if sys.exc_info()[0] is not None else self.exit_code)
        self.run = None


class WandbWriter(EventWriter):
    """Log the numbers and images of the event storage. It must precede TensorBoard's writer, which clears the images.

    Args:
        run: started by :class:`WandbHook`.
        window_size: iterations over which noisy numbers are smoothed.
    """

    def __init__(self, run: WandbRun, window_size: int = 20) -> None:
        self.run, self.window_size = run, window_size
        self._last_iteration = -1

    def write(self) -> None:
        """Log the values that are new since the last call, by iteration."""
        if self.run.run is None:
            return
        storage = get_event_storage()
        values: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self.window_size).items():
            if iteration > self._last_iteration:
                values[iteration][name] = value
        with self.run.guard("logging images"):
            for name, image, iteration in compat.pending_images(storage):  # (3, H, W)
                if iteration > self._last_iteration:
                    values[iteration][name] = self.run.wandb.Image(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
        for iteration in sorted(values):
            self.run.log(iteration, values[iteration])
        self._last_iteration = max(values, default=self._last_iteration)

    def close(self) -> None:
        """End the run."""
        self.run.finish()


class WandbHook(HookBase):
    """Start the run, and log what the event storage does not contain.

    That is histograms of the ``WATCH``ed tensors; after each evaluation predictions and a table of the classes' AP; and
    the best checkpoint.

    Args:
        run: not started yet.
        best: the ``BestCheckpoint`` hook, if there is one; it must run before this one.
    """

    trainer: Any

    def __init__(self, run: WandbRun, best: Any = None) -> None:
        self.run, self.best = run, best
        self._logged_results: Any = None

    def before_train(self) -> None:
        """Start or continue the run."""
        self.run.start(resume=self.trainer.resumed)

    def after_step(self) -> None:
        """Log histograms if they are due, and the evaluation of this iteration if there was one."""
        node, results = self.run.node, self.trainer.last_results
        if self.run.run is None:
            return
        if node.WATCH and (self.trainer.iter + 1) % node.WATCH_PERIOD == 0:
            with self.run.guard("logging histograms"):
                self.run.log(self.trainer.iter, histograms(self.run.wandb, self.trainer.model, node.WATCH))
        if results is not self._logged_results:
            self._logged_results = results
            self._log_evaluation(results)

    def _log_evaluation(self, results: dict[str, Any]) -> None:
        cfg, iteration = self.trainer.cfg, self.trainer.iter
        with self.run.guard("logging an evaluation"):
            tables = class_tables(cfg, results)
            columns = ["class", "bbox AP", "segm AP"]
            media = {name: self.run.wandb.Table(columns=columns, data=rows) for name, rows in tables.items()}
            self.run.log(iteration, {**media, **prediction_images(self.run.wandb, cfg, self.trainer.model)})
        if self.run.node.LOG_MODEL == "all" and self.best is not None and self.best.best_iter == iteration:
            self._log_best()

    def _log_best(self) -> None:
        assert self.best is not None
        metadata = {"metric": self.best.metric, "value": self.best.best, "iteration": self.best.best_iter}
        self.run.log_model(self.best.files(), metadata)

    def after_train(self) -> None:
        """Upload the best checkpoint, also of a training that was stopped."""
        self.run.exit_code = EXIT_INTERRUPTED if self.trainer.stop_requested else 0
        if self.run.node.LOG_MODEL == "end" and self.best is not None and self.best.best is not None:
            self._log_best()
