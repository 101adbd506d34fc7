"""Write the config of a training from a dataset alone: find the data, the weights and the schedule."""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2_maskrcnn._version import __version__
from d2_maskrcnn.config.keys import get_value
from d2_maskrcnn.config.loading import load_config, parse_config
from d2_maskrcnn.config.validation import leaves
from d2_maskrcnn.data import check_coco_json, dataset_records, register_own_data
from d2_maskrcnn.data.discovery import FoundData, find_training_data
from d2_maskrcnn.data.flaws.find_flaws import Purpose
from d2_maskrcnn.engine.console import console
from d2_maskrcnn.engine.data_summary import describe_data, summarize
from d2_maskrcnn.engine.planning import FROM_SCRATCH, plan_training
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.atomic import atomic_write_text
from d2_maskrcnn.weights.checkpoint_files import stored_metadata
from d2_maskrcnn.weights.download import cached_path, fetch_weights
from d2_maskrcnn.weights.readers import read_weights
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

CONFIG = "mrcnn_R101"
# Tried in this order if no weights are given.
PRETRAINED = {
    "COCO": "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72.pkl",
    "ImageNet": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
}
SCRATCH = "scratch"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a planned training; see :func:`d2_maskrcnn.engine.run.train`."""

    data: str | Path
    val: str | Path | None = None
    config: str | Path | None = None
    weights: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    image_size: int | None = None
    output: str | Path | None = None
    overrides: Sequence[Any] = ()

    def output_dir(self) -> str:
        """Return ``output``, else ``OUTPUT_DIR`` of the overrides, else ``output/<name of the data>``."""
        pairs = dict(zip(map(str, self.overrides[::2]), self.overrides[1::2], strict=False))
        path = Path(self.data).expanduser()
        default = Path("output") / (path.stem if path.is_file() else path.resolve().name)
        return str(Path(str(self.output or pairs.get("OUTPUT_DIR") or default)).expanduser())


def write_plan(options: TrainingOptions, path: Path) -> None:
    """Plan a training, show the plan, and write it as a config.

    Args:
        options: the data, and the values that are not planned.
        path: the new config file; split data is written to the folder ``data`` beside it.

    Raises:
        UserError: the data, the config or the weights cannot be used.
    """
    data = find_training_data(options.data, path.parent / "data", options.val)
    cfg, given, is_default = _base_config(options)
    names = _use_data(cfg, data)
    summaries = [summarize(dataset_records(each)) for each in (cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0])]
    for line in describe_data(dict(zip(("train", "val"), summaries, strict=True)), names, data):
        console.info("%s", line)
    from_scratch = not cfg.MODEL.WEIGHTS
    if from_scratch and is_default:
        cfg.merge_from_list([item for pair in FROM_SCRATCH.items() if pair[0] not in given for item in pair])
    plan = plan_training(
        cfg,
        *summaries,
        given=given,
        epochs=options.epochs,
        from_scratch=from_scratch,
        fine_tuning=not from_scratch and _is_detector(cfg.MODEL.WEIGHTS),
        processes=comm.get_world_size(),
    )
    cfg.merge_from_list([item for pair in plan.settings.items() for item in pair])
    console.info("Plan, written to %s, where it can be edited:", path)
    for line in (f"{'weights':12}{cfg.MODEL.WEIGHTS or 'random'}", *plan.lines):
        console.info("  %s", line)
    atomic_write_text(path, f"# Training on {options.data}, planned by d2_maskrcnn {__version__}.\n" + _changes(cfg))


def warn_of_changed_options(options: TrainingOptions, cfg: CfgNode, images: int) -> None:
    """Warn of options that differ from the plan of a training that is resumed, which keeps its plan.

    Args:
        options: those of the resumed run.
        cfg: the config in use.
        images: number of training images.
    """
    wanted = {"SOLVER.IMS_PER_BATCH": options.batch_size, "INPUT.MIN_SIZE_TEST": options.image_size}
    if options.epochs is not None and 0 < options.epochs < math.inf:
        iterations = math.ceil(options.epochs * images / cfg.SOLVER.IMS_PER_BATCH)
        wanted["SOLVER.MAX_ITER"] = max(iterations, 1)
    for key, value in wanted.items():
        planned = get_value(cfg, key)
        if value is not None and value != planned and key not in options.overrides[::2]:
            console.warning("A resumed training keeps its plan: %s is %s; set %s %s.", key, planned, key, value)


def _base_config(options: TrainingOptions) -> tuple[CfgNode, set[str], bool]:
    """Return the config before planning, the keys that the user has set, and whether it is the default model."""
    overrides, given = list(map(str, options.overrides)), set(map(str, options.overrides[::2]))
    stored = None
    if options.config is None and options.weights not in (None, SCRATCH):
        stored = stored_metadata(read_weights(fetch_weights(str(options.weights)), copy_states=())).get("config")

    def load(opts: Sequence[str]) -> CfgNode:
        if isinstance(stored, str):
            return parse_config(stored, f"The config stored in {options.weights}", opts)
        return load_config(str(options.config or CONFIG), opts)

    cfg, is_default = load(overrides), options.config is None and not isinstance(stored, str)
    if not cfg.D2_MASKRCNN.SOLVER.REFERENCE_BATCH and "SOLVER.BASE_LR" not in given:
        cfg.D2_MASKRCNN.SOLVER.REFERENCE_BATCH = load(()).SOLVER.IMS_PER_BATCH  # that SOLVER.BASE_LR was chosen for
    if options.batch_size is not None:
        given.add("SOLVER.IMS_PER_BATCH")
        cfg.SOLVER.IMS_PER_BATCH = options.batch_size
    if options.image_size is not None:
        _set_image_size(cfg, options.image_size, given)
    cfg.MODEL.WEIGHTS = _weights(options, cfg, given, is_default)
    return cfg, given, is_default


def _set_image_size(cfg: CfgNode, size: int, given: set[str]) -> None:
    """Scale all sizes of resized images so that the shorter side has ``size`` pixels in evaluations."""
    scale = size / (cfg.INPUT.MIN_SIZE_TEST or max(cfg.INPUT.MIN_SIZE_TRAIN))
    values = {
        "INPUT.MIN_SIZE_TRAIN": tuple(round(each * scale) for each in cfg.INPUT.MIN_SIZE_TRAIN),
        "INPUT.MAX_SIZE_TRAIN": round(cfg.INPUT.MAX_SIZE_TRAIN * scale),
        "INPUT.MIN_SIZE_TEST": size,
        "INPUT.MAX_SIZE_TEST": round(cfg.INPUT.MAX_SIZE_TEST * scale),
    }
    cfg.merge_from_list([item for pair in values.items() if pair[0] not in given for item in pair])


def _weights(options: TrainingOptions, cfg: CfgNode, given: set[str], is_default: bool) -> str:
    """Return the weights to start from: those of the options, else the first available of ``PRETRAINED``."""
    if options.weights is not None:
        return "" if options.weights == SCRATCH else str(options.weights)
    if "MODEL.WEIGHTS" in given or not is_default:
        return str(cfg.MODEL.WEIGHTS)
    for name, address in PRETRAINED.items():
        if not cached_path(address).is_file():
            console.info("Downloading weights trained on %s to %s", name, cached_path(address))
        try:
            fetch_weights(address)
            return address
        except UserError as error:
            logger.info("%s", error)
    console.warning(
        "No weights could be downloaded (see log.txt): training from random weights, which needs more images and "
        "time. Give a weight file, or copy the one trained on COCO to the path shown above."
    )
    return ""


def _is_detector(weights: str) -> bool:
    """Return whether a weight file contains a detector; its region proposal network is "rpn" in every library."""
    names = read_weights(fetch_weights(weights), copy_states=())["model"]
    return any("rpn" in name for name in names)


def _use_data(cfg: CfgNode, data: FoundData) -> list[str]:
    """Check the data and put it into the config; return the class names."""
    masks = cfg.MODEL.MASK_ON
    # The start of the training repeats the checks, with warnings.
    with _errors_only("d2_maskrcnn.data"), _errors_of_parts(data):
        check_coco_json(data.train_json, data.train_images, Purpose(masks, evaluate=False))
        check_coco_json(data.val_json, data.val_images, Purpose(masks, train=False))
    node = cfg.D2_MASKRCNN.DATA
    node.TRAIN_JSON, node.TRAIN_IMAGES = str(data.train_json.resolve()), str(data.train_images.resolve())
    node.VAL_JSON, node.VAL_IMAGES = str(data.val_json.resolve()), str(data.val_images.resolve())
    register_own_data(cfg)
    dataset_records(cfg.DATASETS.TRAIN[0])  # sets the class names
    names = list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
    return names


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _errors_of_parts(data: FoundData) -> Iterator[None]:
    """Name the file that the user gave in the errors of its parts, if validation data was split off."""
    try:
        yield
    except UserError as error:
        part = next((each for each in (data.train_json, data.val_json) if str(error).startswith(str(each))), None)
        if data.split_from is None or part is None:
            raise
        raise UserError(f"{data.split_from}{str(error).removeprefix(str(part))} (in its part {part})") from error


def _changes(cfg: CfgNode) -> str:
    """Return the values of a config that differ from the defaults, as YAML."""
    defaults = load_config("")
    changed: dict[str, Any] = {}
    for key, value in leaves(cfg):
        if key != "OUTPUT_DIR" and value != get_value(defaults, key):
            *path, name = key.split(".")
            node = changed
            for part in path:
                node = node.setdefault(part, {})
            node[name] = value
    text: str = yaml.dump(yaml.safe_load(CfgNode(changed).dump()), Dumper=_PlanDumper, sort_keys=False, width=120)
    return text


class _PlanDumper(yaml.SafeDumper):
    """Write lists on one line."""


_PlanDumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
