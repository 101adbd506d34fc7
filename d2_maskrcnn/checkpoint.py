"""Save and load checkpoints on both engines."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn._version import __version__
from d2_maskrcnn.config.keys import plugin_node
from d2_maskrcnn.distributed import gather, run_together, unwrap
from d2_maskrcnn.errors import UserError, doing, import_extra
from d2_maskrcnn.weights.atomic import atomic_torch_save, atomic_write_text, make_folder, plain_values
from d2_maskrcnn.weights.channels import adapt_first_convolution
from d2_maskrcnn.weights.checkpoint_files import (
    LAST_CHECKPOINT,
    check_training_state,
    find_checkpoints,
    newest_whole,
    stored_class_names,
    stored_metadata,
    stored_metrics,
)
from d2_maskrcnn.weights.comparison import (
    LoadReport,
    check_evaluable,
    check_resumable,
    check_same_model,
    check_values,
    class_change,
    compare,
)
from d2_maskrcnn.weights.download import fetch_weights, is_remote
from d2_maskrcnn.weights.names import convert_names
from d2_maskrcnn.weights.readers import read_weights
from d2_maskrcnn.weights.safetensors_files import write_safetensors
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

logger = logging.getLogger(__name__)
console = logging.getLogger("d2_maskrcnn.console")  # shown on the terminal, see d2_maskrcnn.engine.console


class MaskRCNNCheckpointer(DetectionCheckpointer):
    """Save and load a model and other objects that have ``state_dict()`` and ``load_state_dict()``.

    Unlike Detectron2's checkpointer it never runs code from a file, replaces files atomically, reads the parameter
    names of Caffe2's and torchvision's ResNets, and stores the origin of each checkpoint under ``"metadata"``.

    Args:
        model: the model; a ``DistributedDataParallel`` or ``DataParallel`` wrapper is removed.
        save_dir: folder of the checkpoints.
        save_to_disk: whether this process writes; default: only the main process.
        class_names, category_ids: of the classes, in the order of the model's outputs, stored in the metadata.
        config: the model's config as YAML, stored in the metadata, so that the file can be used without others.
        safetensors: whether ``model_final`` and ``model_best`` are also written as safetensors, weights alone.
        engine: description of the engine for the metadata; default: :func:`d2_maskrcnn.engine_info`.
        checkpointables: further objects to save and load, by name.

    Attributes:
        last_report: comparison of the last loaded file with the model; None before the first load.
        loaded_metadata: metadata of the last loaded file; empty if it has none.
        metrics: finite numbers of the last evaluation by name, stored in the metadata. Resuming restores them.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
        config: str | None = None,
        safetensors: bool = False,
        engine: Mapping[str, str] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(unwrap(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        if safetensors:
            import_extra("safetensors", "safetensors")  # before the training, not at its end
        self.logger = logger
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.category_ids = None if category_ids is None else [int(number) for number in category_ids]
        self.config, self.safetensors = config, safetensors
        self.metrics: dict[str, float] = {}
        self.loaded_metadata: dict[str, Any] = {}
        self.engine = dict(engine) if engine is not None else engine_info().as_dict()
        self.last_report: LoadReport | None = None
        self._loading = ""  # path or address being loaded, for messages

    def metadata(self, iteration: int | None = None) -> dict[str, Any]:
        """Return what a checkpoint stores about its origin, so that it can be used without other files."""
        return {
            "engine": self.engine,
            "d2_maskrcnn": __version__,
            "torch": str(torch.__version__),
            "thing_classes": self.class_names,
            "category_ids": self.category_ids,
            "config": self.config,
            "iteration": iteration,
            "metrics": dict(self.metrics),
        }

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth``, then its name to ``last_checkpoint``, both atomically.

        Args:
            name: file name without folder and ``.pth``.
            kwargs: further data to store, returned by :meth:`load`.

        Raises:
            UserError: the file cannot be written; older checkpoints are unchanged.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"expected a checkpoint name without a folder, got {name!r}")
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: plain_values(item.state_dict()) for key, item in self.checkpointables.items()})
        data.update(plain_values(kwargs))
        data["metadata"] = self.metadata(data.get("iteration"))
        path = make_folder(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        atomic_torch_save(data, path)
        if self.safetensors and name in ("model_final", "model_best"):
            write_safetensors(data["model"], path.with_suffix(".safetensors"), data["metadata"])
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record the file that :meth:`resume_or_load` resumes from."""
        atomic_write_text(Path(self.save_dir) / LAST_CHECKPOINT, last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Return whether ``save_dir`` contains a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Return the checkpoint named in ``last_checkpoint``, else the newest in ``save_dir``; "" if there is none."""
        return next(iter(find_checkpoints(self.save_dir)), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint in ``save_dir`` if ``resume`` and there is one; else load weights.

        Args:
            path: weight file or address to load the model from when nothing is resumed; "" for none.
            resume: whether to look for a checkpoint. It must fill the whole model, and the other states are loaded
                too (optimizer, iteration, ...).

        Returns:
            As :meth:`load`.

        Raises:
            UserError: see :meth:`load`; or none of the checkpoints can be read.
        """
        seen = gather(self.has_checkpoint()) if resume else [False]
        if len(set(seen)) > 1:
            raise UserError(
                f"Only processes {[rank for rank, has in enumerate(seen) if has]} of {len(seen)} see a checkpoint in "
                f"OUTPUT_DIR {self.save_dir}; give all machines the same files there (a shared folder, or copies)."
            )
        if not seen[0]:
            return self.load(path, checkpointables=[])
        return self._load(gather(run_together(lambda: newest_whole(self.save_dir)))[0], None, resuming=True)

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, content: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Load the model's weights, and the states of ``checkpointables``, from a file.

        Args:
            path: local file or address (``detectron2://``, ``https://``); "" loads nothing.
            checkpointables: names of the further states to load if the file contains them; None for all.
            content: what :func:`~d2_maskrcnn.weights.readers.read_weights` returned for ``path``, so that the file is
                not read again; its entry "model" is removed. None reads the file.

        Returns:
            The other contents of the file (``iteration``, ``metadata``, ...).

        Raises:
            UserError: the file cannot be downloaded or read, belongs to another model, or a state does not fit.
        """
        return self._load(path, checkpointables, resuming=False, content=content)

    def _load(
        self, path: str, checkpointables: list[str] | None, resuming: bool, content: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        if not path:
            self.logger.info("MODEL.WEIGHTS is empty: the model keeps its initial values")
            return {}
        self.logger.info("Loading %s", path)
        self._loading = path
        states = list(self.checkpointables) if checkpointables is None else checkpointables
        if content is None:
            # One process of each machine downloads; the others find the file in its cache.
            run_together(lambda: fetch_weights(path) if comm.get_local_rank() == 0 else path)
        with doing(f"loading {path}"):
            checkpoint = content or run_together(lambda: self._read(fetch_weights(path), states))
            self.last_report = self._load_model(checkpoint)
        self.loaded_metadata = stored_metadata(checkpoint)
        self._log_report(self.last_report)
        if resuming:
            self._check_resumed(path, checkpoint)
        for key in states:
            if key in checkpoint:
                self._load_state(key, checkpoint.pop(key))
            elif resuming:
                self.logger.warning("%s does not contain the state of %r, which keeps its initial values", path, key)
        return checkpoint

    def _read(self, filename: str, states: list[str]) -> dict[str, Any]:
        try:
            return read_weights(filename, copy_states=states)
        except UserError as error:
            if not is_remote(self._loading):
                raise
            raise UserError(
                f"{error} It is the cached copy of {self._loading}: delete it to download it again."
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> LoadReport:
        model_state = self.model.state_dict()
        shapes = {name: tuple(value.shape) for name, value in model_state.items()}
        converted = convert_names(checkpoint.pop("model"), shapes)
        path = self._loading or "checkpoint"
        adapted, how = adapt_first_convolution(path, converted.state, shapes)
        converted = dataclasses.replace(converted, state={**converted.state, **adapted})
        report = dataclasses.replace(compare(path, converted, shapes), adapted=how)
        check_same_model(report, converted, shapes)
        fitting = {name: torch.as_tensor(converted.state[name]) for name in report.loaded}
        report = dataclasses.replace(report, bad_values=check_values(report.path, fitting, model_state))
        self.model.load_state_dict(fitting, strict=False)
        return report

    def _log_report(self, report: LoadReport) -> None:
        self.logger.info("%s", report)
        if (change := class_change(report)) is not None and not report.missing:
            console.info(
                "Fine-tuning from %d classes to %d: %d tensors are loaded, the %d that depend on the number of classes "
                "start from random values.",
                *change, len(report.loaded), len(report.wrong_shape),
            )  # fmt: skip
        elif report.wrong_shape or not (report.is_complete or report.is_backbone_only):
            self.logger.warning("%s", report.summary())
        if report.adapted:
            console.info("%s: %s", report.path, report.adapted)
        if report.bad_values:
            self.logger.warning(
                "%s: training from these values will probably fail: %s", report.path, report.describe_bad_values()
            )

    def check_evaluable(self) -> None:
        """Refuse to evaluate the last loaded file if it does not fill the whole model with finite numbers.

        Raises:
            UserError: it does not.
        """
        if self.last_report is not None:
            check_evaluable(self.last_report)

    def _check_resumed(self, path: str, checkpoint: Mapping[str, Any]) -> None:
        if self.last_report is not None:
            check_resumable(self.last_report)
        check_training_state(path, checkpoint, {k: tuple(v.shape) for k, v in self.model.state_dict().items()})
        self.metrics = stored_metrics(checkpoint)
        names = stored_class_names(checkpoint)
        if names and self.class_names and names != self.class_names:
            self.logger.warning("%s was trained with the classes %s, this run has %s", path, names, self.class_names)

    def _load_state(self, key: str, state: Any) -> None:
        self.logger.info("Loading the state of %r", key)
        try:
            self.checkpointables[key].load_state_dict(state)
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"The state of {key!r} in {self._loading} does not fit this run ({type(error).__name__}: {error}): "
                "resume with the config it was written with, or start a new training with it as MODEL.WEIGHTS."
            ) from error


def build_checkpointer(cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> MaskRCNNCheckpointer:
    """Build a checkpointer for ``OUTPUT_DIR`` whose files contain the config, the classes and the engine."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).as_dict() if cfg.DATASETS.TRAIN else {}
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    return MaskRCNNCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        class_names=metadata.get("thing_classes"),
        category_ids=sorted(ids, key=lambda number: ids[number]) if ids else None,
        config=cfg.dump(),
        safetensors=plugin_node(cfg).SAFETENSORS,
        **checkpointables,
    )
