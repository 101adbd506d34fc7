"""Your own COCO-format data from the command line, without writing Python.

``D2_MASKRCNN.DATA.{TRAIN,VAL}_{JSON,IMAGES}`` name a JSON file and the folder of its images; here they become
registered datasets, as if by Detectron2's ``register_coco_instances``.
"""

import hashlib
import logging
import os
import re
from pathlib import Path

from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

logger = logging.getLogger(__name__)

_PAIRS = (("TRAIN", "TRAIN"), ("VAL", "TEST"))  # our prefix -> Detectron2's key in DATASETS
_BUILT_IN = re.compile(r"(keypoints_)?coco_20(14|17)_")


def is_built_in(name: str) -> bool:
    """Whether ``name`` is one of Detectron2's own COCO datasets, say ``coco_2017_train``."""
    return _BUILT_IN.match(name) is not None


def register_own_data(cfg: CfgNode) -> None:
    """Registers what ``D2_MASKRCNN.DATA`` names and puts it in ``DATASETS.TRAIN`` and ``DATASETS.TEST``, in place.

    The names are made from the paths, so every process that calls this with the same config registers the same ones,
    and calling it again changes nothing. Training data of one's own with no validation data takes COCO's built-in sets
    out of ``DATASETS.TEST``: their categories are not the model's.

    Args:
        cfg: with the node ``D2_MASKRCNN``; may be frozen.

    Raises:
        UserError: a path does not exist, images are named without a JSON, or the folder of the images is neither
            named nor found from the JSON.
    """
    frozen = cfg.is_frozen()
    cfg.defrost()
    for prefix, key in _PAIRS:
        name = _register_pair(cfg.D2_MASKRCNN.DATA, prefix)
        if name is not None:
            cfg.DATASETS[key] = (name,)
    if cfg.D2_MASKRCNN.DATA.TRAIN_JSON and not cfg.D2_MASKRCNN.DATA.VAL_JSON:
        _drop_built_in_tests(cfg)
    if frozen:
        cfg.freeze()


def _drop_built_in_tests(cfg: CfgNode) -> None:
    dropped = [name for name in cfg.DATASETS.TEST if is_built_in(name)]
    if dropped:
        cfg.DATASETS.TEST = tuple(name for name in cfg.DATASETS.TEST if not is_built_in(name))
        logger.warning(
            "D2_MASKRCNN.DATA.VAL_JSON is not set: %s left out of DATASETS.TEST, so nothing is evaluated there",
            ", ".join(dropped),
        )


def _register_pair(data: CfgNode, prefix: str) -> str | None:
    """Registers one JSON with its images; returns the dataset's name, or None where neither is set."""
    json_key, images_key = f"{prefix}_JSON", f"{prefix}_IMAGES"
    if not data[json_key]:
        if data[images_key]:
            raise UserError(
                f"D2_MASKRCNN.DATA.{images_key} is {data[images_key]!r} but D2_MASKRCNN.DATA.{json_key} is empty: "
                f"name the COCO JSON of these images too"
            )
        return None
    json_file = find_path(data[json_key], f"D2_MASKRCNN.DATA.{json_key}")
    if not json_file.is_file():
        raise UserError(f"D2_MASKRCNN.DATA.{json_key} {json_file} is a folder: expected a COCO JSON file")
    if data[images_key]:
        images = find_path(data[images_key], f"D2_MASKRCNN.DATA.{images_key}")
        if not images.is_dir():
            raise UserError(f"D2_MASKRCNN.DATA.{images_key} {images} is a file: expected the folder of the images")
    else:
        images = guess_image_folder(json_file, f"D2_MASKRCNN.DATA.{images_key}")
    name = dataset_name(json_file, images)
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, str(json_file), str(images))
    return name


def dataset_name(json_file: Path, images: Path) -> str:
    """The name under which a JSON and its images are registered: readable, and different for different paths."""
    stem = re.sub(r"\W+", "_", f"{json_file.parent.parent.name}_{json_file.stem}").strip("_")
    digest = hashlib.sha256(f"{json_file.resolve()}|{images.resolve()}".encode()).hexdigest()
    return f"own_{stem}_{digest[:8]}"


def find_path(path: str, key: str) -> Path:
    """``path`` as it stands or, where nothing is there, under ``$DETECTRON2_DATASETS`` (default ``datasets``).

    Args:
        path: as configured; ``~`` is expanded.
        key: the config key it comes from, for the message.

    Raises:
        UserError: it is in neither place.
    """
    given = Path(path).expanduser()
    if given.exists():
        return given
    tried = [given]
    if not given.is_absolute():
        tried.append(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / given)
        if tried[-1].exists():
            return tried[-1]
    raise UserError(
        f"{key} is {path!r} but there is no {' and no '.join(str(each) for each in tried)}: give a path that exists, "
        "relative to the working directory or to the environment variable DETECTRON2_DATASETS"
    )


def guess_image_folder(json_file: Path, key: str) -> Path:
    """The folder from which the JSON's ``file_name`` s lead to images, for a JSON given without one.

    Looked for in this order: the JSON's folder; ``images`` in it; then the same in its parent, and there the split's
    folder (``instances_train.json`` -> ``train``).

    Args:
        json_file: an existing COCO JSON file.
        key: the config key that would name the folder, for the message.

    Raises:
        UserError: the first few images are in none of them.
    """
    names = [image.get("file_name") for image in read_coco_json(json_file)["images"][:5] if isinstance(image, dict)]
    here, above = json_file.parent, json_file.parent.parent
    split = json_file.stem.removeprefix("instances_")
    candidates = [here, here / "images", here / split, above, above / split, above / "images", above / "images" / split]
    for folder in candidates:
        if names and all(isinstance(name, str) and (folder / name).is_file() for name in names):
            return folder
    raise UserError(
        f"{json_file}: no folder near it holds its images ({', '.join(map(str, names[:2])) or 'none listed'}): "
        f"name the folder with {key}"
    )
