"""``python -m d2_maskrcnn.inspection``: a report of what a model does step by step, of its weights and of its data."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn.checkpoint import load_model
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.data import augmented_scenes, inspect_data
from d2_maskrcnn.inspection.ground_truth import class_names_of, dataset_records, records_for
from d2_maskrcnn.inspection.model import initial_weights
from d2_maskrcnn.inspection.observation import observe
from d2_maskrcnn.inspection.report import PARTS, Report, write_report
from d2_maskrcnn.inspection.weights import inspect_weights, read_state
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)

ALL_PARTS = (*PARTS, "weights", "data")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m d2_maskrcnn.inspection", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config-file", default="", metavar="FILE", help="the model's config")
    parser.add_argument("--input", nargs="+", default=[], metavar="IMAGE", help="images to follow through the model")
    parser.add_argument("--annotations", default="", metavar="JSON", help="COCO JSON of these images; the config's "
                        "datasets are searched without it")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where report.html goes")
    parser.add_argument("--weights", default="", metavar="FILE", help="look at this weight file alone, without a model")
    parser.add_argument("--compare", default="", metavar="FILE", help="another weight file to compare the weights with")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="modules whose activations are shown beside the "
                        "stages', such as backbone.bottom_up.res4.22.conv3")  # fmt: skip
    parser.add_argument(
        "--parts", nargs="+", choices=ALL_PARTS, metavar="PART", help=f"only these of: {', '.join(ALL_PARTS)}"
    )
    parser.add_argument("--score-threshold", type=float, default=0.5, metavar="S", help="of the final result, 0 to 1")
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="augmented images in the part on data")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys: "
                        "MODEL.WEIGHTS model.pth and others")  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> Path:
    """Makes the report that the command line asks for and returns its path.

    Raises:
        UserError: something on the command line, in the config or in a file is not as it should be.
    """
    args = build_parser().parse_args(arguments)
    for name in ("d2_maskrcnn", "detectron2", "fvcore"):
        setup_logger(name=name)
    logging.getLogger("detectron2.data").setLevel(logging.WARNING)  # it would tell each image's augmentations
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold is {args.score_threshold}: expected a number from 0 to 1")
    report = _weights_alone(args) if args.weights else _of_model(args)
    path = write_report(report, args.output)
    logger.info("Wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _weights_alone(args: argparse.Namespace) -> Report:
    if args.input:
        raise UserError("--weights looks at a file alone; to follow images name it with --opts MODEL.WEIGHTS FILE")
    other = read_state(args.compare) if args.compare else None
    state = read_state(args.weights)
    fresh, exact = initial_weights(_config(args), args.weights) if args.config_file else (None, False)
    findings = inspect_weights(state, args.weights, other, args.compare, fresh, exact)
    return Report(about=_about(args, args.weights), weights=findings, title="Weights")


def _of_model(args: argparse.Namespace) -> Report:
    if not args.config_file:
        raise UserError(
            "--config-file is missing: name the model's config, or look at a file alone with --weights FILE"
        )
    cfg = _config(args)
    parts = list(args.parts or ALL_PARTS)
    records = records_for(args.input, cfg, args.annotations)
    if not records and not {"weights", "data"} & set(parts):
        raise UserError(f"--parts {' '.join(parts)} needs images: name some with --input")
    model, names = load_model(cfg, require_weights=False)
    names = names or class_names_of(cfg, args.annotations)
    report = Report(
        about=_about(args, cfg.MODEL.WEIGHTS or "none: the weights are random"),
        parts=[part for part in PARTS if part in parts],
        threshold=args.score_threshold,
    )
    if not cfg.MODEL.WEIGHTS:
        report.notes.append("The model has random weights: name a file with --opts MODEL.WEIGHTS FILE")
    bar = tqdm(records, "Images", unit="image", disable=None if len(records) > 1 else True, dynamic_ncols=True)
    report.observations = [observe(cfg, model, record, names, args.layers) for record in bar]
    if "weights" in parts:
        other = read_state(args.compare) if args.compare else None
        fresh, exact = initial_weights(cfg, cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else (None, False)
        report.weights = inspect_weights(model, cfg.MODEL.WEIGHTS or "random", other, args.compare, fresh, exact)
    if "data" in parts:
        _add_data(report, cfg, asked=args.parts is not None, samples=args.samples)
    return report


def _add_data(report: Report, cfg: CfgNode, asked: bool, samples: int) -> None:
    """The part on data, of the first dataset that is on this machine; none is an error only if it was asked for."""
    here = next((name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if dataset_records(name)), None)
    if here is not None:
        report.data = inspect_data(cfg, here)
        report.samples = augmented_scenes(cfg, here, samples)
    elif asked:
        raise UserError(
            f"--parts data: none of DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} is on this machine: "
            "name your data with --opts D2_MASKRCNN.DATA.TRAIN_JSON FILE"
        )


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    _register(cfg)
    return cfg


def _register(cfg: CfgNode) -> None:
    """Registers the config's own data, each set that is there: the images' annotations are welcome, not needed."""
    data = cfg.D2_MASKRCNN.DATA
    for prefix, key in (("TRAIN", "TRAIN"), ("VAL", "TEST")):
        wanted = data[f"{prefix}_JSON"], data[f"{prefix}_IMAGES"]
        other = "VAL" if prefix == "TRAIN" else "TRAIN"
        one = cfg.clone()
        one.DATASETS.TEST = ()
        one.D2_MASKRCNN.DATA[f"{other}_JSON"] = one.D2_MASKRCNN.DATA[f"{other}_IMAGES"] = ""
        if not any(wanted):
            continue
        try:
            register_own_data(one)
        except UserError as error:
            logger.info("%s", error)
            cfg.DATASETS[key] = ()
        else:
            cfg.DATASETS[key] = one.DATASETS[key]


def _about(args: argparse.Namespace, weights: str) -> dict[str, str]:
    about = {"weights": weights}
    if args.config_file:
        about["config"] = args.config_file
    if args.opts:
        about["options"] = " ".join(args.opts)
    if args.compare:
        about["compared with"] = args.compare
    return {**about, "engine": str(engine_info())}


def console() -> int:
    """The program: 0, or 2 with one line for bad input."""
    from d2_maskrcnn.engine import run_main

    return run_main(lambda: main(sys.argv[1:]))
