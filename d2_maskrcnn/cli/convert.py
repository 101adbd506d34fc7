"""Convert a dataset from the format of one annotation tool to that of another.

examples:
  {program} my/labelme --to coco --output my/coco
  {program} export.json --to yolo --output my/yolo --copy-images
  {program} balloon --to coco --output datasets/balloon --category balloon

SOURCE is an annotation file or the folder of a dataset: COCO JSON of any tool, VIA, LabelMe, Pascal VOC, PNG masks,
YOLO, CVAT XML or Label Studio JSON, recognized by its content; or the name of a registered dataset. Everything that can
be converted is converted. A table lists what was dropped and why; then the exit status is 2. docs/data.md describes the
formats.
"""

import argparse
from pathlib import Path

IMPORTS = ("d2_maskrcnn.data.conversion",)
DEFAULT_CATEGORY = "object"
FORMATS = ("coco", "yolo", "labelme", "voc", "cvat", "label-studio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source, the format and the options of the output."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="annotation file, folder, or name of a registered dataset")
    add("--to", required=True, choices=FORMATS, help="format to write; cvat and label-studio are for correcting "
        "annotations in these tools")  # fmt: skip
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder to write; files of SOURCE stay unchanged")
    add("--images", type=Path, metavar="FOLDER", help="folder of the images (default: searched near the annotations)")
    add("--category", metavar="NAME", help="category of objects that have none, such as those of PNG masks (default: "
        "object)")  # fmt: skip
    add("--category-attribute", metavar="NAME", help="VIA: the region attribute that contains the category")
    add("--copy-images", action="store_true", help="copy the images; by default, symbolic links refer to them")
    add("--overwrite", action="store_true", help="replace existing files in the output folder")


def run(args: argparse.Namespace) -> None:
    """Convert the dataset and print a table of what was written and dropped.

    Raises:
        UserError: the source cannot be read, a file exists already, or something was dropped.
    """
    from d2_maskrcnn.data.conversion import convert
    from d2_maskrcnn.errors import UserError

    done = convert(
        args.source,
        args.to,
        args.output,
        images=args.images,
        category=args.category or DEFAULT_CATEGORY,
        category_attribute=args.category_attribute,
        copy_images=args.copy_images,
        overwrite=args.overwrite,
        progress=True,
    )
    print(done.table())
    print(f"\nWrote {len(done.files)} annotation files and {done.images} images "
          f"({'copied' if args.copy_images else 'as links'}) to {done.output}")  # fmt: skip
    if done.categories == [DEFAULT_CATEGORY] and not args.category:
        print(f"The only class is called {DEFAULT_CATEGORY}, as without a class in SOURCE; --category NAME names it.")
    if done.dropped:
        raise UserError(
            f"{len(done.dropped)} entries of {args.source} were dropped, see the table; the others were converted"
        )
