"""Register your own COCO-format data from config keys, without writing Python.

``D2_MASKRCNN.DATA.{TRAIN,VAL}_{JSON,IMAGES}`` name a JSON file and its image folder. They become registered datasets,
as if by Detectron2's ``register_coco_instances``.
"""

import itertools
import logging
import os
import re
from pathlib import Path

from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.coco.records import register_coco_json
from d2_maskrcnn.data.formats.image_references import nearest_image_folder
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

_PAIRS = (("TRAIN", "TRAIN"), ("VAL", "TEST"))  # prefix in D2_MASKRCNN.DATA -> key in DATASETS
_BUILT_IN = re.compile(r"(keypoints_)?coco_20(14|17)_")
_SPLIT = re.compile(r"(?:instances_)?((?:train|val|test)\w*)")  # names of files of one split
_registered: dict[str, tuple[Path, Path]] = {}  # name -> resolved JSON and image folder


def is_built_in(name: str) -> bool:
    """Return whether ``name`` is one of Detectron2's own COCO datasets, such as ``coco_2017_train``."""
    return _BUILT_IN.match(name) is not None


def is_own(name: str) -> bool:
    """Return whether ``name`` is a dataset that :func:`register_own_data` has registered."""
    return name in _registered


def register_own_data(cfg: CfgNode) -> None:
    """Register what ``D2_MASKRCNN.DATA`` names and set ``DATASETS.TRAIN`` and ``DATASETS.TEST`` to it, in place.

    The datasets are called ``train`` and ``val``, or as the JSON: ``instances_val2017.json`` is ``val2017``. Other data
    with a name that is taken gets a number: ``val_2``. A second call changes nothing. With training data but no
    validation data of your own, the built-in COCO sets are removed from ``DATASETS.TEST``: their categories are not the
    model's.

    Args:
        cfg: a config with the node ``D2_MASKRCNN``; may be frozen.

    Raises:
        UserError: a path does not exist, an image folder is named without a JSON, or the image folder is neither named
            nor exists near the JSON.
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
            "D2_MASKRCNN.DATA.VAL_JSON is not set: %s removed from DATASETS.TEST, so nothing is evaluated on it",
            ", ".join(dropped),
        )


def _register_pair(data: CfgNode, prefix: str) -> str | None:
    """Register one JSON with its images; return the dataset's name, or None if neither is set."""
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
        what = "a folder" if json_file.is_dir() else "a FIFO, device or socket"
        raise UserError(f"D2_MASKRCNN.DATA.{json_key} {json_file} is {what}: expected a COCO JSON file")
    if data[images_key]:
        images = find_path(data[images_key], f"D2_MASKRCNN.DATA.{images_key}")
        if not images.is_dir():
            raise UserError(f"D2_MASKRCNN.DATA.{images_key} {images} is not a folder: expected the image folder")
    else:
        images = guess_image_folder(json_file, f"D2_MASKRCNN.DATA.{images_key}")
    return _register(json_file, images, default=prefix.lower())


def _register(json_file: Path, images: Path, default: str) -> str:
    """Register a JSON and its images under the first name that is free, or return the name that they have."""
    split = _SPLIT.fullmatch(json_file.stem)
    plain, source = split.group(1) if split else default, (json_file.resolve(), images.resolve())
    for number in itertools.count(1):
        name = plain if number == 1 else f"{plain}_{number}"
        if name in DatasetCatalog.list():
            if _registered.get(name) == source:
                return name
        elif not {"json_file", "thing_classes"} & MetadataCatalog.get(name).as_dict().keys():  # of a removed dataset
            register_coco_json(name, json_file, images)
            _registered[name] = source
            return name
    raise AssertionError("unreachable")


def find_path(path: str, key: str) -> Path:
    """Return ``path``, or if nothing is there, the path under ``$DETECTRON2_DATASETS`` (default ``datasets``).

    Args:
        path: as configured; ``~`` is expanded.
        key: the config key that contains it, for the message.

    Raises:
        UserError: it exists in neither place.
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
    """Find the folder near a JSON that its ``file_name`` entries are relative to.

    See :func:`~d2_maskrcnn.data.formats.image_references.nearest_image_folder`.

    Args:
        json_file: an existing COCO JSON file.
        key: the config key that would name the folder, for the message.

    Raises:
        UserError: no images are listed, or no folder contains any of the first ones.
    """
    images = read_coco_json(json_file, annotations_required=False)["images"]
    if not images:
        raise UserError(f"{json_file}: lists no images; expected at least 1")
    names = [image.get("file_name") for image in images if isinstance(image, dict)]
    folder, hits = nearest_image_folder(json_file, names)
    if hits or (names and all(isinstance(name, str) and os.path.isabs(name) for name in names) and folder.is_dir()):
        return folder
    raise UserError(
        f"{json_file}: no folder near it contains its images ({', '.join(map(str, names[:2]))}): "
        f"name the folder with {key}"
    )
