"""Split a dataset into train, val and optionally test, with the same mix of classes in each.

examples:
  {program} my/annotations.json --output my/split
  {program} my/labelme --output my/split --shares 70 20 10 --seed 3
  {program} my/frames.json --output my/split --group-by "^(video[0-9]+)_"

DATASET is a COCO JSON or a dataset of any format that `d2-maskrcnn convert` reads. The output is one COCO JSON per
part, which refers to the images where they lie. Images of one group, such as the frames of a video, stay in one part.
"""

import argparse
from pathlib import Path

IMPORTS = ("d2_maskrcnn.data.splitting",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the dataset and the options of the split."""
    add = parser.add_argument
    add("dataset", metavar="DATASET", type=Path, help="annotation file or folder")
    add("--images", type=Path, metavar="FOLDER", help="folder of the images (default: searched near the annotations)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder of instances_train.json and the others")
    add("--shares", type=float, nargs="+", default=[80.0, 20.0], metavar="SHARE",
        help="of train, val and test; two or three numbers (default: 80 20)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="another number gives another split (default: 0)")
    add("--group-by", metavar="PATTERN", help="keep images together that are in one folder (the word folder) or whose "
        "names agree in what this regular expression matches, or its parentheses if it has any")  # fmt: skip
    add("--overwrite", action="store_true", help="replace files of an earlier split")


def run(args: argparse.Namespace) -> None:
    """Write one COCO JSON per part and print a table of their contents.

    Raises:
        UserError: bad input, or an output file exists already or is one of the dataset.
    """
    from d2_maskrcnn.data.coco.writing import to_coco, write_coco_json
    from d2_maskrcnn.data.formats import read
    from d2_maskrcnn.data.splitting import NAMES, describe_parts, split
    from d2_maskrcnn.errors import UserError

    paths = [args.output / f"instances_{name}.json" for name in NAMES[: len(args.shares)]]
    existing = [str(path) for path in paths if path.exists()]
    if existing and not args.overwrite:
        raise UserError(f"{existing[0]}: exists already; name another --output folder, or add --overwrite")
    dataset = read(args.dataset, args.images)
    sources = {file.resolve() for file in dataset.files}
    for path in paths:
        if path.resolve() in sources:
            raise UserError(f"{path}: is an annotation file of {args.dataset}; name another --output folder")
    parts = split(dataset, args.shares, args.seed, args.group_by)
    for path, part in zip(paths, parts, strict=True):
        write_coco_json(path, to_coco(part))
    print(describe_parts(parts))
    if dataset.dropped:
        print(f"Left out: {len(dataset.dropped):,} entries of {args.dataset}; `d2-maskrcnn check` lists them.")
    print(f"Wrote {', '.join(map(str, paths))}")
    folder = args.dataset if args.dataset.is_dir() else args.dataset.parent
    if args.output.resolve().is_relative_to(folder.resolve()):
        print(f"The parts are in the dataset's folder: commands that are given {folder} may read them in its place.")
