"""Export a trained model to a file that runs without this package: ONNX, OpenVINO or torch.export.

examples:
  {program} output/quickstart/model_final.pth --format onnx
  {program} model_final.pth --format openvino --half --output model.xml
  {program} model_final.pth --format onnx --size 800 1344 --batch 1
  {program} model_final.pth --format onnx --int8 --calibrate images/

--opts KEY VALUE ... overrides the stored config: MODEL.ROI_HEADS.SCORE_THRESH_TEST, for example, is the lowest score
that the file returns.
"""

import argparse
import logging
from pathlib import Path

from d2_maskrcnn.errors import UserError

IMPORTS = ("d2_maskrcnn.exporters",)
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
FORMATS = tuple(SUFFIXES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the export."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint to export")
    add("--format", choices=FORMATS, default="onnx", help="onnx (.onnx), openvino (.xml and .bin) or torch (.pt2)")
    add("--output", type=Path, metavar="FILE", help="file to write (default: MODEL's name with the format's suffix)")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--half", action="store_true", help="store weights as float16")
    add("--int8", action="store_true", help="compute in int8 on CPUs; needs --calibrate")
    add(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="images similar to the model's later input, for --int8",
    )
    add("--size", nargs=2, type=int, metavar=("H", "W"), help="take images of this size only (default: any size)")
    add("--batch", type=int, metavar="N", help="take this number of images only (default: any number)")
    add("--pasted-masks", action="store_true", help="also return masks of the size of the images")
    add("--config-file", metavar="FILE", help="config of the model (default: the one that it stores)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; comes last")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse the names of outputs that cannot be written, before the model is loaded.

    Raises:
        UserError: the suffix is not the format's, the folder does not exist, or the file exists already.
    """
    suffix = SUFFIXES[args.format]
    path = args.output or Path(Path(args.model).name or "model").with_suffix(suffix)
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: expected a name that ends with {suffix} for the format {args.format}.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first.")
    if path.exists() and not args.overwrite:
        raise UserError(f"{path}: exists already; name another file, or add --overwrite.")


def run(args: argparse.Namespace) -> None:
    """Export the model.

    Raises:
        UserError: bad input.
    """
    from d2_maskrcnn.exporters import export

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("d2_maskrcnn.exporters").setLevel(logging.INFO)  # how int8 compares with float32
    if args.int8 and args.calibrate is None:
        raise UserError("--int8 needs images to measure the range of activations: add --calibrate FOLDER.")
    if args.calibrate is not None and not args.int8:
        raise UserError("--calibrate is for --int8 only: add --int8, or leave it out.")
    path = export(
        args.model,
        args.format,
        args.output,
        config=args.config_file,
        overrides=args.opts,
        half=args.half,
        calibrate=args.calibrate,
        size=tuple(args.size) if args.size else None,
        batch=args.batch,
        paste=args.pasted_masks,
        overwrite=args.overwrite,
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
