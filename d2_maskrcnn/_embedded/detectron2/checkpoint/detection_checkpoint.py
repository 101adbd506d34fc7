"""The checkpointer of detection models."""

import logging
import os
from typing import Any
from urllib.parse import parse_qs, urlparse

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

# Set by the config and not trained; weight files may contain them.
_CONSTANT_BUFFERS = ("pixel_mean", "pixel_std")
_CELL_ANCHORS = "anchor_generator.cell_anchors"


class DetectionCheckpointer(Checkpointer):
    """Save a model with the states of other objects, and load it from checkpoints and from weight files of other
    programs.

    Reading never runs code from a file: only tensors, arrays and plain containers are accepted. A file is written
    completely or not at all.

    Args:
        model: may be wrapped in DistributedDataParallel.
        save_dir: folder of :meth:`save` and :meth:`resume_or_load`; nothing is saved if it is empty.
        save_to_disk: whether this process saves; None for the main process.
        **checkpointables: objects with ``state_dict()`` and ``load_state_dict()``, saved under these names.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logging.getLogger(__name__)
        self.path_manager = PathManager
        self._match_names = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and the states of the ``checkpointables`` in the file.

        Args:
            path: a file or address (``detectron2://``, ``https://``); "" loads nothing. A trailing
                ``?matching_heuristics=True`` matches names by their ends (see :func:`align_and_update_state_dicts`), as
                is always done for files of Caffe2 and torchvision.
            checkpointables: names of the states to load; None for all.

        Returns:
            The other content of the file, such as ``iteration``.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has no weights, or content that is not accepted.
        """
        address, _, query = path.partition("?") if _asks_for_matching(path) else (path, "", "")
        self._match_names = bool(query)
        if address:
            from d2_maskrcnn.weights import fetch_weights

            downloads = address.startswith(("http://", "https://", "detectron2://"))
            address = fetch_weights(address) if downloads else self.path_manager.get_local_path(address)
            if not os.path.isfile(address):
                raise FileNotFoundError(f"the weight file or checkpoint {address!r} does not exist")
        return super().load(address, checkpointables)

    def get_checkpoint_file(self) -> str:
        """Return the checkpoint that ``save_dir/last_checkpoint`` names; "" if there is none.

        Raises:
            ValueError: it names a file in another folder.
        """
        path: str = super().get_checkpoint_file()
        if path and os.path.dirname(path) != self.save_dir.rstrip("/"):
            raise ValueError(f"{self.save_dir}/last_checkpoint names {path!r}, which is outside that folder")
        return path

    def _load_file(self, f: str) -> dict[str, Any]:
        """Return the content of a local file: ``"model"``, a dict of tensors or arrays, and anything else."""
        # In the function: importing any module of the plugin first imports its models, which import this engine.
        from d2_maskrcnn.weights import read_weights

        return read_weights(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load ``checkpoint["model"]``, which is removed from the dict, and return the names that did not match."""
        from d2_maskrcnn.weights import convert_names

        state = checkpoint["model"]
        foreign = convert_names(state, self.model.state_dict()).convention != "detectron2"
        if foreign or self._match_names or checkpoint.pop("matching_heuristics", False):
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), state, c2_conversion=foreign or checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)
        missing = [n for n in incompatible.missing_keys if n not in _CONSTANT_BUFFERS and _CELL_ANCHORS not in n]
        unexpected = [name for name in incompatible.unexpected_keys if _CELL_ANCHORS not in name]
        return incompatible._replace(missing_keys=missing, unexpected_keys=unexpected)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` completely or not at all, and its name to ``save_dir/last_checkpoint``.

        Args:
            name: without folder and extension.
            **kwargs: further content: numbers, text, tensors, and containers of them.

        Raises:
            ValueError: ``name`` contains a folder.
            OSError: the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        from d2_maskrcnn.weights import atomic_torch_save

        if os.path.basename(name) != name:
            raise ValueError(f"the name of a checkpoint must not contain a folder, got {name!r}")
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        PathManager.mkdirs(self.save_dir)
        path = os.path.join(PathManager.get_local_path(self.save_dir), f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        atomic_torch_save(data, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the file from which :meth:`resume_or_load` continues to ``save_dir/last_checkpoint``."""
        from d2_maskrcnn.weights import atomic_write_text

        atomic_write_text(
            os.path.join(PathManager.get_local_path(self.save_dir), "last_checkpoint"), last_filename_basename
        )


def _asks_for_matching(path: str) -> bool:
    return parse_qs(urlparse(path).query).get("matching_heuristics") == ["True"]
