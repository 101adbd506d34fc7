"""A run of Weights & Biases (https://docs.wandb.ai) that goes on when the training does, and never stops it."""

import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2_maskrcnn.loggers.wandb_files import last_written_step
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.config import CfgNode

STATE_FILE = "wandb_run.json"  # in OUTPUT_DIR: the run's id, its last step, and the images that it has
INIT_SECONDS = 30  # to reach the server, before the run is recorded offline instead
FINISH_SECONDS = 1800  # to send what is left; the files stay, for `wandb sync`

logger = logging.getLogger(__name__)


class WandbSession:
    """One run, in the main process. Where W&B is missing or fails, a line says so and nothing is logged from then on.

    Steps never go back and none is given twice: those that the run has kept of a killed process are left out, whose
    numbers were the same.

    Args:
        cfg: the whole config; it is sent along.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.node = cfg, cfg.D2_MASKRCNN.WANDB
        self.run: Any = None
        self.wandb: Any = None
        self.exit_code = 0
        self._id = ""
        self._state_file = Path(cfg.OUTPUT_DIR) / STATE_FILE
        self.given_before = -1  # the last step that earlier processes gave
        self._last_step = -1
        self.sent: dict[str, Any] = {}  # of each image that the run has, how to refer to it

    def start(self, resumed: bool) -> None:
        """Starts a run, or with ``resumed`` goes on with the one of this ``OUTPUT_DIR``."""
        try:
            import wandb
        except ImportError as error:
            logger.error("W&B: not installed (%s): training goes on without. pip install wandb", error)
            return
        self.wandb = wandb
        state = self._read_state() if resumed else {}
        self.given_before = self._last_step = state.get("last_step", -1)
        self._id = state.get("id") or secrets.token_hex(4)
        self._try("starting the run", self._init)
        if self.run is not None:
            if state:
                self.given_before = self._last_step = self._stored_step(self._last_step)
                sent = state.get("sent", {})
                self.sent = {name: found for name, found in sent.items() if found["step"] <= self.given_before}
            logger.info("W&B: run %s (%s), files in %s", self._id, self.run.settings.mode, self.run.dir)

    def _stored_step(self, noted: int) -> int:
        """The last step that the run has kept: a killed process takes some with it that it had been given."""
        if not self.run.offline:
            return int(self.run.starting_step) - 1  # what the server has
        try:
            found = last_written_step(self._folder(), self._id)
        except (ImportError, OSError) as error:
            logger.warning("W&B: the run's files cannot be read (%s): going on after step %d", error, noted)
            return noted
        return noted if found is None else found

    def _folder(self) -> Path:
        return Path(self.node.DIR or self.cfg.OUTPUT_DIR)

    def _init(self) -> None:
        self._write_state()  # before there is a run: a process that is killed meanwhile must not leave one behind
        try:
            self.run = self._init_with_mode(self.node.MODE)
        except Exception as error:
            if self.node.MODE != "online":
                raise
            reason = " ".join(str(error).split())
            logger.warning("W&B: no connection (%s): recording offline; send it later with `wandb sync`", reason)
            self.wandb.teardown()  # its service still holds the run's id
            self.run = self._init_with_mode("offline")

    def _init_with_mode(self, mode: str) -> Any:
        node = self.node
        self._folder().mkdir(parents=True, exist_ok=True)
        self.wandb.setup(self.wandb.Settings(silent=True))  # without a key, it must not wait for somebody to type one
        return self.wandb.init(
            id=self._id,
            resume="allow",
            reinit="create_new",  # never the run of an earlier training in this process that could not be finished
            mode=mode,
            dir=str(self._folder()),
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
        """Nothing is waited for without end. Newer versions can also give up sending what is left at the end."""
        settings = {"init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS))}
        if "finish_timeout_raises" in self.wandb.Settings.model_fields:
            seconds = float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS))
            settings |= {"finish_timeout": seconds, "finish_timeout_raises": True}
        return self.wandb.Settings(silent=True, console="off", **settings)

    def _read_state(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._state_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def _write_state(self) -> None:
        state = {"id": self._id, "last_step": self._last_step, "sent": self.sent}
        atomic_write_text(self._state_file, json.dumps(state))

    def note_sent(self, references: dict[str, dict[str, Any]], step: int) -> None:
        """Remembers, also for a resumed training, how to refer to images that the run has since ``step``."""
        new = {name: {**found, "step": step} for name, found in references.items() if name not in self.sent}
        if self.run is not None and new:
            self.sent.update(new)
            self._try("noting the images", self._write_state)

    def log(
        self,
        values: dict[str, Any],
        step: int,
        complete: bool = False,
        as_media: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> bool:
        """Gives ``values`` of an iteration to the run.

        Args:
            complete: nothing more will come for this step, so it can be sent.
            as_media: makes W&B's kinds of data of the values first.

        Returns:
            Whether they were given.
        """
        if self.run is None or not values or step <= self.given_before or step < self._last_step:
            return False
        if step > self._last_step:
            self._last_step = step  # noted before it is given: never given twice, also where the files cannot be read
            self._try("noting the step", self._write_state)
        self._try("logging", lambda: self.run.log(as_media(values) if as_media else values, step=step, commit=complete))
        return self.run is not None

    def log_model(self, paths: Sequence[Path], metric: dict[str, Any]) -> None:
        """Uploads those of the files that there are as one artifact with the alias ``best``."""
        found = [path for path in paths if path.is_file()]
        if self.run is None or not found:
            return

        def upload() -> None:
            artifact = self.wandb.Artifact(f"model-{self.run.id}", type="model", metadata=metric)
            for path in found:
                artifact.add_file(str(path), skip_cache=True)
            self.run.log_artifact(artifact, aliases=["best"])

        self._try("uploading the best checkpoint", upload)

    def finish(self) -> None:
        """Ends the run: as failed if an exception is on its way through the caller."""
        if self.run is None:
            return
        code = 1 if sys.exc_info()[0] is not None else self.exit_code
        self._try("finishing", lambda: self.run.finish(exit_code=code))
        self.run = None

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # of another program, for which no training shall be lost
            self.run = None
            reason = " ".join(str(error).split())
            logger.error("W&B: %s failed (%s: %s): training goes on without", what, type(error).__name__, reason)
            logger.debug("W&B failed", exc_info=True)
