"""The checkpointer of this project, on both engines: safe reading, converted names, short reports, whole files."""

import copy
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

import d2_maskrcnn
from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.atomic import atomic_torch_save, atomic_write_text, remove_stale_temporaries
from d2_maskrcnn.weights.download import fetch_weights, is_remote
from d2_maskrcnn.weights.names import convert_names
from d2_maskrcnn.weights.readers import read_weights
from d2_maskrcnn.weights.report import LoadReport, check_same_model, class_change, compare
from d2_maskrcnn.weights.resume import LAST_CHECKPOINT, find_checkpoints, newest_whole
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

T = TypeVar("T")


class IncompatibleKeys(NamedTuple):
    """The names that did not fit, in the form of fvcore's checkpointers."""

    missing_keys: list[str]
    unexpected_keys: list[str]
    incorrect_shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


class MaskRCNNCheckpointer(DetectionCheckpointer):
    """Saves and loads a model and whatever else has ``state_dict()`` and ``load_state_dict()``.

    Beside Detectron2's checkpointer: nothing in a file is run, files are written whole or not at all, the names of
    Caffe2's and torchvision's ResNets are understood, and each checkpoint tells in ``"metadata"`` what wrote it.

    Args:
        model: the model, bare or wrapped in DistributedDataParallel.
        save_dir: folder of the checkpoints.
        save_to_disk: whether this process writes; by default the main process does.
        class_names: names of the classes in the order of the model's outputs, kept in the metadata.
        engine: what the metadata says of the engine; by default :func:`d2_maskrcnn.engine_info`.
        checkpointables: further objects to save and load, by name.

    Attributes:
        last_report: what the last loaded file gave the model; None before.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        class_names: Sequence[str] | None = None,
        engine: Mapping[str, str] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(unwrap(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logging.getLogger("d2_maskrcnn.checkpoint")
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.engine = dict(engine) if engine is not None else d2_maskrcnn.engine_info().as_dict()
        self.last_report: LoadReport | None = None
        self._loading = ""  # the file that is being loaded, as the user named it

    def metadata(self, iteration: int | None = None) -> dict[str, Any]:
        """What a checkpoint tells about its origin: engine, versions, class names, iteration."""
        return {
            "engine": self.engine,
            "d2_maskrcnn": d2_maskrcnn.__version__,
            "torch": str(torch.__version__),
            "thing_classes": self.class_names,
            "iteration": iteration,
        }

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``save_dir/name.pth``, then its name to ``last_checkpoint``; each whole or not at all.

        Args:
            name: the file's name without folder and ``.pth``.
            kwargs: further data, given back by :meth:`load`.

        Raises:
            UserError: the file cannot be written; older checkpoints are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"name must be without a folder, got {name!r}")
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: _plain(item.state_dict()) for key, item in self.checkpointables.items()})
        data.update(_plain(kwargs))
        data["metadata"] = self.metadata(data.get("iteration"))
        path = self._make_save_dir() / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        atomic_torch_save(data, path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes which file :meth:`resume_or_load` goes on from."""
        atomic_write_text(Path(self.save_dir) / LAST_CHECKPOINT, last_filename_basename)

    def _make_save_dir(self) -> Path:
        folder = Path(self.save_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot make the folder OUTPUT_DIR {folder}: {error.strerror}: choose another.") from error
        for name in remove_stale_temporaries(folder):
            self.logger.info("Removed %s, which a killed process had left in %s", name, folder)
        return folder

    def has_checkpoint(self) -> bool:
        """Whether ``save_dir`` holds a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint in ``save_dir``: what ``last_checkpoint`` names, else the newest file; "" for none."""
        return next(iter(find_checkpoints(self.save_dir)), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Goes on from the last checkpoint in ``save_dir`` if ``resume`` and there is one; else loads ``path``'s model.

        Args:
            path: a weight file or address for the case that nothing is resumed; "" for none.
            resume: whether to look for a checkpoint. A resumed one must fit this model wholly, and its states are
                loaded too (optimizer, iteration, ...); of ``path`` only the weights are.

        Returns:
            What :meth:`load` returns.

        Raises:
            UserError: see :meth:`load`; or no checkpoint there can be read.
        """
        if not resume:
            return self.load(path, checkpointables=[])
        found = _gather(self.has_checkpoint())
        if len(set(found)) > 1:
            raise UserError(
                f"Only processes {[rank for rank, has in enumerate(found) if has]} of {len(found)} see a checkpoint in "
                f"OUTPUT_DIR {self.save_dir}: all machines need the same files there (a shared folder, or copies)."
            )
        if not found[0]:
            return self.load(path, checkpointables=[])
        return self._load(_gather(_together(lambda: newest_whole(self.save_dir)))[0], None, resuming=True)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads the model's weights, and the states of ``checkpointables``, from a file.

        Args:
            path: a local file or an address (``detectron2://``, ``https://``); "" leaves everything at its initial
                values.
            checkpointables: names of the further states to load where the file has them; None for all.

        Returns:
            What else the file holds (``iteration``, ``metadata``, ...).

        Raises:
            UserError: the file cannot be had or read, belongs to another model, or a state in it does not fit.
        """
        return self._load(path, checkpointables, resuming=False)

    def _load(self, path: str, checkpointables: list[str] | None, resuming: bool) -> dict[str, Any]:
        if not path:
            self.logger.info("No weights given: the model starts from its initial values")
            return {}
        self.logger.info("Loading %s", path)
        self._loading = path
        checkpoint = _together(lambda: self._load_file(fetch_weights(path)))
        self._log_incompatible_keys(self._load_model(checkpoint))
        if resuming:
            self._check_resumed(path, checkpoint)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self._load_state(key, checkpoint.pop(key))
            elif resuming:
                self.logger.warning("%s holds no state of %r: it starts from its initial values", path, key)
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            return read_weights(filename)
        except UserError as error:
            if not is_remote(self._loading):
                raise
            raise UserError(
                f"{error} It is the cached copy of {self._loading}: delete it to download it anew."
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> IncompatibleKeys:
        model_state = self.model.state_dict()
        shapes = {name: tuple(value.shape) for name, value in model_state.items()}
        converted = convert_names(checkpoint.pop("model"), shapes)
        report = compare(self._loading or "checkpoint", converted, shapes)
        check_same_model(report, converted, shapes)
        fitting = {name: torch.as_tensor(converted.state[name]) for name in report.loaded}
        self.model.load_state_dict(fitting, strict=False)
        self.last_report = report
        wrong = [(w.name, w.in_file, w.in_model) for w in report.wrong_shape]
        return IncompatibleKeys(report.missing, report.unexpected, wrong)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        report = self.last_report
        if report is None:
            return
        fine = not report.wrong_shape and (report.is_complete or report.is_backbone_only)
        self.logger.log(logging.INFO if fine else logging.WARNING, "%s", report)
        if (change := class_change(report)) is not None:
            self.logger.warning(
                "The file has %d classes, the model %d (MODEL.ROI_HEADS.NUM_CLASSES): the outputs that depend on them "
                "start from their initial values. That is right for fine-tuning, not for evaluating.",
                *change,
            )

    def _check_resumed(self, path: str, checkpoint: Mapping[str, Any]) -> None:
        report = self.last_report
        if report is not None and not report.is_complete:
            raise UserError(
                f"Cannot resume from {path}: it was written by another model ({len(report.missing)} tensors missing, "
                f"{len(report.wrong_shape)} of another shape, e.g. "
                f"{(report.missing or [w.name for w in report.wrong_shape])[0]}): use the config it was trained with, "
                "or another OUTPUT_DIR."
            )
        names = (checkpoint.get("metadata") or {}).get("thing_classes")
        if names and self.class_names and names != self.class_names:
            self.logger.warning("%s was trained for the classes %s, this run has %s", path, names, self.class_names)

    def _load_state(self, key: str, state: Any) -> None:
        self.logger.info("Loading the state of %r", key)
        try:
            self.checkpointables[key].load_state_dict(state)
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                f"The state of {key!r} in {self._loading} does not fit this run ({type(error).__name__}: {error}): "
                "resume with the config it was written with, or use it as MODEL.WEIGHTS without --resume."
            ) from error


def _plain(value: Any) -> Any:
    """``value`` with numpy's scalars and arrays as Python's and torch's: tensors-only reading admits no numpy."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, OrderedDict):  # of a module; torch keeps its ``_metadata`` as an attribute
        plain = copy.copy(value)
        plain.update((key, _plain(item)) for key, item in value.items())
        return plain
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _gather(value: T) -> list[T]:
    """``value`` of every process, in the order of their ranks."""
    return comm.all_gather(value) if comm.get_world_size() > 1 else [value]


def _together(action: Callable[[], T]) -> T:
    """Does ``action`` in every process; a UserError in one is raised in all, which would else wait for ever."""
    result: T | None = None
    failure = ""
    try:
        result = action()
    except UserError as error:
        if comm.get_world_size() == 1:
            raise
        failure = str(error)
    for rank, message in enumerate(_gather(failure)):
        if message:
            raise UserError(f"Process {rank}: {message}")
    return result  # type: ignore[return-value]
