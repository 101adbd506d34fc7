"""Predict many images on one machine or a cluster with Ray Data, so that an interrupted job continues.

The images are divided into shards. The results of a shard are one JSON Lines file, which appears when it is complete;
a job that is started again does the missing shards only.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2_maskrcnn.data.image_sources import list_images
from d2_maskrcnn.errors import UserError, import_extra, one_line
from d2_maskrcnn.integrations import SHARD_SIZE
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.weights.atomic import atomic_write_text, make_folder

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"


@dataclass
class Summary:
    """The work of one run.

    Attributes:
        done: images of this run, among them ``unreadable`` ones.
        skipped: images of shards that earlier runs completed.
    """

    done: int
    unreadable: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.done} images, {self.unreadable} of them unreadable; {self.skipped} were complete before"


class ShardWriter:
    """Predict the images of a shard and write its file; an actor of Ray Data.

    Args:
        model, threshold: see :class:`~d2_maskrcnn.Predictor`.
    """

    def __init__(self, model: str, threshold: float) -> None:
        self._predictor = Predictor(model, threshold=threshold)

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        """Write ``shard["file"]``, one line for each of ``shard["images"]``, and count the images."""
        lines = list(predict_lines(self._predictor, shard["images"]))
        atomic_write_text(shard["file"], "".join(line + "\n" for line in lines))
        return {"done": len(lines), "unreadable": sum("error" in json.loads(line) for line in lines)}


def predict_lines(predictor: Predictor, paths: Sequence[str]) -> Iterator[str]:
    """Yield one JSON object per image, in order.

    Args:
        paths: image files, each once.

    Yields:
        See :meth:`~d2_maskrcnn.Results.to_json`; ``path`` and ``error`` of an image that cannot be read.
    """
    remaining = iter(paths)
    for result in predictor(list(paths)):  # without the files that cannot be read
        for path in remaining:
            if path == result.path:
                break
            yield _predict_line(predictor, path)
        yield result.to_json()
    for path in remaining:
        yield _predict_line(predictor, path)


def _predict_line(predictor: Predictor, path: str) -> str:
    try:
        line: str = predictor(path).to_json()
        return line
    except UserError as error:
        return json.dumps({"path": path, "error": one_line(error)})


def predict_images(
    model: str | Path,
    images: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    threshold: float = 0.5,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    cpus: float = 1,
) -> Summary:
    """Predict many images with Ray Data and write JSON Lines files; continue if ``output`` has a part of them already.

    A cluster is used if ``RAY_ADDRESS`` names one or if one runs on this machine; its nodes must have this package, and
    the model, the images and ``output`` at the same paths. Otherwise Ray starts on this machine for this call.

    Args:
        model: a checkpoint or an exported file.
        images: a folder, a glob pattern, or image files.
        output: a folder. Each of its files ``predictions-*.jsonl`` has the results of ``shard_size`` images, one line
            per image; see :func:`predict_lines`.
        threshold: minimum score of a detection.
        workers: number of processes with a model each; default: one per GPU, without GPUs one per ``cpus``.
        cpus: CPU cores of a worker.

    Returns:
        the numbers of images.

    Raises:
        UserError: there are no images, the model cannot be loaded, ``output`` belongs to another job, a number is
            invalid, or Ray is not installed.
    """
    if shard_size < 1 or cpus <= 0 or (workers is not None and workers < 1):
        raise UserError(f"shard_size {shard_size}, workers {workers}, cpus {cpus}: expected positive numbers.")
    paths = _list(images)
    folder = make_folder(Path(output).absolute())
    model = Path(model).absolute()
    shards = [each for each in plan_shards(paths, shard_size, folder) if not Path(each["file"]).exists()]
    if shards:
        Predictor(model, threshold=threshold, device="cpu")  # reports a bad model or threshold before Ray starts
    job = {"model": _digest_file(model), "images": _digest(paths), "threshold": threshold, "shard_size": shard_size}
    _check_job(folder, job)
    summary = Summary(0, 0, len(paths) - sum(len(shard["images"]) for shard in shards))
    with tqdm(total=len(paths), initial=summary.skipped, unit="image") as bar:
        for counts in _run(shards, str(model), threshold, workers, cpus) if shards else ():
            summary.done += counts["done"]
            summary.unreadable += counts["unreadable"]
            bar.update(counts["done"])
    return summary


def _list(images: str | Path | Iterable[str | Path]) -> list[str]:
    """Return the absolute path of each image file once, in order."""
    sources = [images] if isinstance(images, (str, Path)) else list(images)
    paths = [path for source in sources for path in (list_images(source) or [Path(source)])]
    if not paths:
        raise UserError("images is empty: expected a folder, a glob pattern or image files.")
    return list(dict.fromkeys(str(path.expanduser().absolute()) for path in paths))


def plan_shards(paths: Sequence[str], size: int, folder: Path) -> list[dict[str, Any]]:
    """Divide images into shards: ``file`` and ``images`` of each.

    >>> [shard["images"] for shard in plan_shards(["a", "b", "c"], 2, Path("out"))]
    [['a', 'b'], ['c']]
    """
    starts = range(0, len(paths), size)
    return [
        {"file": str(folder / f"predictions-{i:05}-of-{len(starts):05}.jsonl"), "images": list(paths[s : s + size])}
        for i, s in enumerate(starts)
    ]


def _check_job(folder: Path, job: dict[str, Any]) -> None:
    """Write the description of the job, or compare it with that of the earlier run."""
    path = folder / JOB_FILE
    if not path.exists():
        atomic_write_text(path, json.dumps(job))
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key, value in job.items() if earlier[key] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); name another output folder.") from error
    if changed:
        raise UserError(
            f"{folder}: contains results of another job, with a different value of {', '.join(changed)}; name another "
            "output folder."
        )


def _digest(paths: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a checkpoint or an exported file.") from error


def _run(
    shards: list[dict[str, Any]], model: str, threshold: float, workers: int | None, cpus: float
) -> Iterator[dict[str, int]]:
    """Write the shards; yields the counts of each."""
    with _cluster() as (ray, data):
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0)
        count = min(workers or int(gpus or resources.get("CPU", 1) // cpus) or 1, len(shards))
        dataset = data.from_items(shards, override_num_blocks=len(shards)).map(
            ShardWriter,
            fn_constructor_args=(model, threshold),
            compute=data.ActorPoolStrategy(size=count),
            num_cpus=cpus,
            num_gpus=min(1, gpus / count),
        )
        yield from dataset.iter_rows()


@contextlib.contextmanager
def _cluster() -> Iterator[tuple[Any, Any]]:
    """Connect to Ray, or start it for the block, and yield the modules ``ray`` and ``ray.data``."""
    ray, data = import_extra("ray", "ray"), import_extra("ray.data", "ray")
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends statistics to its makers
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # a report of ten lines every ten seconds
    context = data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield ray, data
    finally:
        context.enable_progress_bars = bars
        if started:
            ray.shutdown()
