"""List everything in a dataset that makes a training fail or its results worse.

examples:
  {program} my/annotations.json
  {program} my/train.json my/val.json --html flaws.html
  {program} my/labelme --fix my/repaired --json flaws.json

DATASET is a COCO JSON, a dataset of any format that `d2-maskrcnn convert` reads, or the name of a registered dataset.
Several are the parts of one dataset, such as train and val, which must not share images. Objects are compared with the
anchors and limits of the config. --opts KEY VALUE ... overrides it and comes last. The exit status is 2 if there are
errors, and 0 otherwise.
"""

import argparse
from pathlib import Path

IMPORTS = ("d2_maskrcnn.data.checking",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the datasets, the outputs and the config."""
    add = parser.add_argument
    add("datasets", nargs="+", metavar="DATASET", help="annotation file, folder or registered name")
    add("--images", type=Path, metavar="FOLDER", help="folder of the images (default: searched near the annotations)")
    add("--json", type=Path, metavar="FILE", help="write all flaws with all ids as JSON")
    add("--html", type=Path, metavar="FILE", help="write a page with examples as images, and statistics")
    add("--fix", type=Path, metavar="FOLDER", help="write a copy with the flaws repaired that need no decision")
    add("--overwrite", action="store_true", help="replace files of an earlier --json, --html or --fix")
    add("--config-file", default="", metavar="FILE", help="config of the model to train (default: Mask R-CNN)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; comes last")


def run(args: argparse.Namespace) -> None:
    """Print the flaws and write the files that are asked for.

    Raises:
        UserError: a dataset cannot be read, or an output file exists already or is a file of a dataset.
        SystemExit: there are errors.
    """
    from d2_maskrcnn.config.loading import load_config
    from d2_maskrcnn.data.checking import SEVERITIES, check, checked_files, fix, write_json
    from d2_maskrcnn.errors import EXIT_BAD_INPUT, UserError

    outputs = [path for path in (args.json, args.html) if path is not None]
    for path in outputs:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        if path.exists() and not args.overwrite:
            raise UserError(f"{path}: exists already; name another file, or add --overwrite")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(f"--json and --html are the same file {args.html}; expected two files")
    default = [] if args.config_file else ["MODEL.MASK_ON", "True"]  # Detectron2's own default is a model of boxes
    cfg = load_config(args.config_file, [*default, *args.opts])
    report = check(*args.datasets, images=args.images, cfg=cfg)
    for path in outputs:
        if path.resolve() in checked_files(report):
            raise UserError(f"{path}: is one of the files that were checked; name another file")
        if path.is_file() and not _is_report(path):
            raise UserError(f"{path}: is not a report of an earlier check, so it is not replaced; name another file")
    print(report)
    counts = {f"{each}s": report.count(each) for each in SEVERITIES}
    print(", ".join(f"{count} kind{'' if count == 1 else 's'} of {name}" for name, count in counts.items()))
    if args.json is not None:
        write_json(report, args.json)
    if args.html is not None:
        from d2_maskrcnn.inspection.flaws_page import write_flaws_page

        write_flaws_page(report, args.html)
    for path in outputs:
        print(f"Wrote {path}")
    if args.fix is not None:
        for each in fix(report, args.fix, args.overwrite):
            print(each)
    if report.has_errors:
        raise SystemExit(EXIT_BAD_INPUT)


def _is_report(path: Path) -> bool:
    """Return whether a file is empty or begins as the reports of this command do, unlike annotations and images."""
    with path.open("rb") as file:
        start = file.read(64)
    return not start or start.startswith(b'{\n "parts"') or start.lower().startswith(b"<!doctype html")
