"""Collect and write the report of ``d2-maskrcnn inspect``.

It is apart from :mod:`d2_maskrcnn.cli.inspect`, so that ``--help`` does not import PyTorch.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn.cli.predict import how_to_name_model
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.inspection.data import augmented_scenes, inspect_data
from d2_maskrcnn.inspection.observation import observe
from d2_maskrcnn.inspection.records import available_records, class_names_of, records_for
from d2_maskrcnn.inspection.report import PARTS, Report, write_report
from d2_maskrcnn.inspection.weights import initial_weights, inspect_weights, read_state
from d2_maskrcnn.model_loading import load_model, open_checkpoint
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

ALL_PARTS = (*PARTS, "weights", "data")


def run(args: argparse.Namespace) -> Path:
    """Write the report that the command line describes; return its path.

    Args:
        args: see :mod:`d2_maskrcnn.cli.inspect`.

    Raises:
        UserError: an argument, a config value or a file is invalid.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logger.setLevel(logging.INFO)
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold {args.score_threshold}: expected a number from 0 to 1")
    for part in args.parts or ():
        if part not in ALL_PARTS:
            hint = did_you_mean(part, ALL_PARTS) or f" The parts are {', '.join(ALL_PARTS)}."
            raise UserError(f"--parts {part}: the report has no such part.{hint}")
    report = _weight_report(args) if args.weights else _model_report(args)
    path = write_report(report, args.output)
    logger.info("Wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _weight_report(args: argparse.Namespace) -> Report:
    if args.input:
        raise UserError("--weights inspects a file alone; for images name it without the option: inspect FILE IMAGE")
    other = read_state(args.compare) if args.compare else None
    initial = initial_weights(_config(args)[0], args.weights) if args.config_file else None
    findings = inspect_weights(read_state(args.weights), args.weights, other, args.compare, initial)
    return Report(about=_about(args, args.weights), weights=findings, title="Weights")


def _model_report(args: argparse.Namespace) -> Report:
    if not (args.config_file or _weights(args)):
        how = how_to_name_model(args.input)
        raise UserError(f"inspect needs a model: {how}, or a config with --config-file.")
    cfg, content = _config(args)
    parts = list(args.parts or ALL_PARTS)
    records = records_for(args.input, cfg, args.annotations)
    if not records and not {"weights", "data"} & set(parts):
        raise UserError(f"--parts {' '.join(parts)} needs images: name some with --input")
    model, names = load_model(cfg, require_weights=False, content=content)
    names = names or class_names_of(cfg, args.annotations)
    path = cfg.MODEL.WEIGHTS
    report = Report(
        about=_about(args, path or "none"),
        parts=[part for part in PARTS if part in parts],
        threshold=args.score_threshold,
        notes=[] if path else ["The model has random weights: name a weight file with --opts MODEL.WEIGHTS FILE"],
    )
    bar = tqdm(records, "Images", unit="image", disable=None if len(records) > 1 else True, dynamic_ncols=True)
    report.observations = [observe(cfg, model, record, names, args.layers) for record in bar]
    if "weights" in parts:
        other = read_state(args.compare) if args.compare else None
        initial = initial_weights(cfg, path) if path else None
        report.weights = inspect_weights(model, path or "random", other, args.compare, initial)
    if "data" in parts:
        _add_data(report, cfg, args)
    return report


def _add_data(report: Report, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Add the data section for the first dataset whose files exist; if there is none, refuse ``--parts data``."""
    dataset = next((name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if available_records(name)), None)
    if dataset is not None:
        report.data = inspect_data(cfg, dataset)
        report.samples = augmented_scenes(cfg, dataset, args.samples)
    elif args.parts is not None:
        raise UserError(
            f"--parts data: the files of DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} are not on this machine: name your "
            "data with --opts D2_MASKRCNN.DATA.TRAIN_JSON FILE"
        )


def _config(args: argparse.Namespace) -> tuple[CfgNode, dict[str, Any] | None]:
    """Load the config and register its own data, without the datasets whose files are missing.

    Returns:
        The config, and the content of the weight file if it was read.
    """
    if args.config_file:
        cfg, content = load_config(args.config_file, args.opts), None
    else:
        cfg, content = open_checkpoint(_weights(args), None, args.opts)
    data = cfg.D2_MASKRCNN.DATA
    for prefix, other, key in (("TRAIN", "VAL", "TRAIN"), ("VAL", "TRAIN", "TEST")):
        if not data[f"{prefix}_JSON"] and not data[f"{prefix}_IMAGES"]:
            continue
        single = cfg.clone()
        single.DATASETS.TEST = ()
        single.D2_MASKRCNN.DATA[f"{other}_JSON"] = single.D2_MASKRCNN.DATA[f"{other}_IMAGES"] = ""
        try:
            register_own_data(single)
        except UserError as error:
            logger.info("%s", error)
            single.DATASETS[key] = ()
        cfg.DATASETS[key] = single.DATASETS[key]
    return cfg, content


def _weights(args: argparse.Namespace) -> str:
    return str(dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get("MODEL.WEIGHTS", ""))


def _about(args: argparse.Namespace, weights: str) -> dict[str, str]:
    about = {"weights": weights, "config": args.config_file, "options": " ".join(args.opts)}
    about |= {"compared with": args.compare, "engine": str(engine_info())}
    return {name: value for name, value in about.items() if value}
