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

# Made by the config, not trained: weight files may have them or not.
_CONSTANT_BUFFERS = ("pixel_mean", "pixel_std")
_CELL_ANCHORS = "anchor_generator.cell_anchors"


class DetectionCheckpointer(Checkpointer):
    """Saves a model with other objects' states, and loads it from checkpoints and other programs' weight files.

    Reading runs nothing that a file holds: of ``.pth`` tensors and plain containers are taken, of ``.pkl`` arrays and
    plain containers. Writing gives a whole file or none.

    Args:
        model: may be wrapped for several processes.
        save_dir: where :meth:`save` writes and :meth:`resume_or_load` looks; an empty string saves nothing.
        save_to_disk: None lets the main process save.
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
        """Loads the model, and the states of the ``checkpointables`` that the file has.

        Args:
            path: a file or address (``detectron2://``, ``https://``). At its end ``?matching_heuristics=True`` asks for
                names to be matched by their endings (see :func:`align_and_update_state_dicts`); files of Caffe2 and
                torchvision are always matched so. An empty string loads nothing.
            checkpointables: which states to load; None: all that there are.

        Returns:
            What else the file holds, e.g. ``iteration``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no weights, or something that is not to be loaded.
        """
        address, _, query = path.partition("?") if _asks_for_matching(path) else (path, "", "")
        self._match_names = bool(query)
        if address:
            from d2_maskrcnn.weights import fetch_weights

            downloads = address.startswith(("http://", "https://", "detectron2://"))
            address = fetch_weights(address) if downloads else self.path_manager.get_local_path(address)
            if not os.path.isfile(address):
                raise FileNotFoundError(f"there is no weight file or checkpoint {address!r}")
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
        """The content of a local file: ``"model"``, a dict of tensors or arrays, and what else it holds."""
        # In the function: importing any module of the plugin first imports its models, which import this engine.
        from d2_maskrcnn.weights import read_weights

        return read_weights(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Loads ``checkpoint["model"]``, which is taken out, and returns the names that did not fit."""
        from d2_maskrcnn.weights import convert_names

        state = checkpoint["model"]
        foreign = convert_names(state, self.model.state_dict()).convention != "detectron2"
        if foreign or self._match_names or checkpoint.pop("matching_heuristics", False):
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), state, c2_conversion=foreign or checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)
        missing = [name for name in incompatible.missing_keys if not self._is_constant(name)]
        unexpected = [name for name in incompatible.unexpected_keys if _CELL_ANCHORS not in name]
        return incompatible._replace(missing_keys=missing, unexpected_keys=unexpected)

    def _is_constant(self, name: str) -> bool:
        return name in _CONSTANT_BUFFERS or _CELL_ANCHORS in name

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``save_dir/name.pth`` whole or not at all, and its name into ``save_dir/last_checkpoint``.

        Args:
            name: without folder and extension.
            **kwargs: further data for the file: numbers, text, tensors, and containers of them.

        Raises:
            ValueError: ``name`` has a folder.
            OSError: the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        from d2_maskrcnn.weights import atomic_torch_save

        if os.path.basename(name) != name:
            raise ValueError(f"the name of a checkpoint is without folder, got {name!r}")
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        PathManager.mkdirs(self.save_dir)
        path = os.path.join(PathManager.get_local_path(self.save_dir), f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        atomic_torch_save(data, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes in ``save_dir/last_checkpoint`` which file :meth:`resume_or_load` goes on from."""
        from d2_maskrcnn.weights import atomic_write_text

        atomic_write_text(
            os.path.join(PathManager.get_local_path(self.save_dir), "last_checkpoint"), last_filename_basename
        )


def _asks_for_matching(path: str) -> bool:
    return parse_qs(urlparse(path).query).get("matching_heuristics") == ["True"]
