"""Compare ``train --data`` with a config tuned by hand, on three small datasets and from the same weights.

    python benchmarks/planned_training.py --weights output/quickstart/model_final.pth --data nuclei --run planned
    python benchmarks/planned_training.py --weights output/quickstart/model_final.pth --data nuclei --run tuned
    python benchmarks/planned_training.py --table

The datasets: *shapes*, 40 small images of ``datasets/prepare_shapes.py``; *nuclei*, 60 drawn images with PNG masks,
which are converted; *balloon*, 74 photographs (``--balloon FOLDER`` with VIA's files), scaled to 192 pixels and split
anew, 60 : 40, because 13 validation images give a noisy AP. Nothing of the plan is overridden. A training that was
interrupted continues when it is run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import d2_maskrcnn  # noqa: E402
from d2_maskrcnn.cli.main import main as command  # noqa: E402
from d2_maskrcnn.data import convert  # noqa: E402

SIZES = {"shapes": 96, "nuclei": 128, "balloon": 128}  # shorter side of the network's inputs
TUNED = {  # as one would write it for such data; learning rate and length by --rate and --iterations
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "TEST.EVAL_PERIOD": 50,
}
CHEAP = ["D2_MASKRCNN.EVALUATION.FIGURES", False, "D2_MASKRCNN.VALIDATION_LOSS", False]


def draw_nuclei(folder: Path, count: int, seed: int, size: int = 128) -> None:
    """Draw ``count`` images of bright, partly overlapping ellipses, and an index mask for each."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        image, labels = rng.normal(12, 3, (size, size)).astype(np.float32), np.zeros((size, size), np.uint8)
        for _ in range(rng.integers(5, 16)):
            center, long = rng.uniform(4, size - 4, 2), rng.uniform(5, 13)
            axes, angle = (2 * long, 2 * long * rng.uniform(0.55, 1)), rng.uniform(0, 180)
            mask = np.zeros((size, size), np.uint8)
            cv2.ellipse(mask, (tuple(center), axes, angle), 255, -1, cv2.LINE_AA)
            inside = mask > 127
            if inside.sum() < 20 or (labels[inside] > 0).mean() > 0.25:
                continue
            labels[inside & (labels == 0)] = labels.max() + 1
            brightness, noise = rng.uniform(25, 120), rng.normal(0, 1, (size, size)).astype(np.float32)
            bright = brightness * (1 + 0.8 * cv2.GaussianBlur(noise, (0, 0), 2))
            image = np.maximum(image, cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 1.2) * bright)
        noisy = np.clip(image + rng.normal(0, 4, (size, size)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), noisy)
        cv2.imwrite(str(folder / "masks" / f"{number:03}.png"), labels)


def shrink(coco: Path, size: int) -> None:
    """Scale the images of a COCO dataset, and its polygons, in place to a shorter side of ``size`` pixels."""
    for json_file in (coco / "annotations").glob("*.json"):
        content, factors = json.loads(json_file.read_text()), {}
        for record in content["images"]:
            path = coco / json_file.stem.removeprefix("instances_") / record["file_name"]
            image = cv2.imread(str(path))
            factor = size / min(image.shape[:2])
            small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            record["height"], record["width"] = small.shape[:2]
            factors[record["id"]] = factor
            path.unlink()  # a link to the original
            cv2.imwrite(str(path), small, [cv2.IMWRITE_JPEG_QUALITY, 95])
        for each in content["annotations"]:
            factor = factors[each["image_id"]]
            each["bbox"], each["area"] = [value * factor for value in each["bbox"]], each["area"] * factor**2
            each["segmentation"] = [[value * factor for value in polygon] for polygon in each["segmentation"]]
        json_file.write_text(json.dumps(content))


def make_data(name: str, folder: Path, balloon: Path | None) -> Path:
    """Make a dataset in COCO's format in ``folder``, unless it is there, and return what ``--data`` takes."""
    if name == "shapes":
        sys.path.insert(0, str(REPO / "datasets"))
        import prepare_shapes

        prepare_shapes.main(["--output", str(folder), "--train", "40", "--val", "50", "--size", "96", "--seed", "7"])
    elif name == "nuclei" and not folder.is_dir():
        draw_nuclei(folder / "png" / "train", 60, seed=3)
        draw_nuclei(folder / "png" / "val", 50, seed=4)
        convert(folder / "png", "coco", folder / "coco", category="nucleus")
    elif name == "balloon" and not folder.is_dir():
        if balloon is None:
            raise SystemExit("--data balloon needs --balloon FOLDER, with train/ and val/ of the balloon dataset")
        convert(balloon, "coco", folder / "coco", category="balloon")
        shrink(folder / "coco", 192)
        command(["split", str(folder / "coco"), "--output", str(folder / "split"), "--shares", "60", "40"])
    return {"shapes": folder, "nuclei": folder / "coco", "balloon": folder / "split"}[name]


def tuned_overrides(args: argparse.Namespace, plan: Path) -> list[Any]:
    """Return the config of an expert over ``quickstart``; the plan names the files, the classes and the mask format."""
    planned = d2_maskrcnn.load_config(str(plan))
    size, total = SIZES[args.data], args.iterations
    values = {f"D2_MASKRCNN.DATA.{key}": value for key, value in planned.D2_MASKRCNN.DATA.items()}
    values |= TUNED | {"MODEL.ROI_HEADS.NUM_CLASSES": planned.MODEL.ROI_HEADS.NUM_CLASSES}
    values |= {"INPUT.MASK_FORMAT": planned.INPUT.MASK_FORMAT, "INPUT.MIN_SIZE_TEST": size, "SOLVER.BASE_LR": args.rate}
    values |= {"INPUT.MIN_SIZE_TRAIN": [size] if args.data == "shapes" else [size - 16, size, size + 16]}
    values |= {"SOLVER.MAX_ITER": total, "SOLVER.WARMUP_ITERS": total // 10, "SOLVER.CHECKPOINT_PERIOD": total}
    return [item for pair in values.items() for item in pair]


def run(args: argparse.Namespace) -> None:
    """Train once, and add the AP and the time to ``WORK/results.json``."""
    data = make_data(args.data, args.work / args.data, args.balloon)
    planned, options = args.work / f"{args.data}_planned", [*CHEAP, "SEED", args.seed]
    name = args.run if args.run == "planned" else f"tuned, rate {args.rate:g}"
    output = planned if args.run == "planned" else args.work / f"{args.data}_tuned_{args.rate:g}"
    output, start = output.with_name(f"{output.name}_{args.seed}"), time.monotonic()
    common: dict[str, Any] = {"weights": args.weights, "output": output, "resume": True}
    if args.run == "planned":
        size = None if SIZES[args.data] == 128 else SIZES[args.data]
        result = d2_maskrcnn.train(data, image_size=size, overrides=options, **common)
    else:
        overrides = [*tuned_overrides(args, planned.with_name(f"{planned.name}_{args.seed}") / "plan.yaml"), *options]
        result = d2_maskrcnn.train(config="quickstart", overrides=overrides, **common)
    file = args.work / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else []
    aps = {key: round(result.metrics[f"{key}/AP"], 1) for key in ("bbox", "segm")}
    results.append(
        {"data": args.data, "run": name, "seed": args.seed, **aps, "minutes": round((time.monotonic() - start) / 60, 1)}
    )
    file.write_text(json.dumps(results, indent=1))
    print(results[-1])


def main() -> None:
    """Run one training, or print the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(SIZES), default="nuclei")
    parser.add_argument("--run", choices=("planned", "tuned"), default="planned", help="planned comes first")
    parser.add_argument("--weights", help="checkpoint of configs/quickstart.yaml")
    parser.add_argument("--rate", type=float, default=0.0005, help="learning rate of the tuned config")
    parser.add_argument("--iterations", type=int, default=300, help="length of the tuned training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--balloon", type=Path, metavar="FOLDER", help="the balloon dataset, with VIA's files")
    parser.add_argument("--work", type=Path, default=Path("output/planned"), help="folder of data and results")
    parser.add_argument("--table", action="store_true", help="print the results as a table")
    args = parser.parse_args()
    if not args.table:
        run(args)
        return
    print("| data | training | seed | box AP | mask AP | minutes |\n|---|---|---|---|---|---|")
    for each in json.loads((args.work / "results.json").read_text()):
        print("| " + " | ".join(str(each[key]) for key in ("data", "run", "seed", "bbox", "segm", "minutes")) + " |")


if __name__ == "__main__":
    main()
