"""Fixtures of all tests. Importing d2_maskrcnn here chooses the engine before any test imports detectron2."""

import importlib.util
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import d2_maskrcnn  # noqa: F401
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks
from tools.fuzz import tiny

REPO = tiny.ROOT


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """Use one thread per pytest-xdist worker, so that workers do not compete for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_log_levels():
    """Undo what a command that runs in this process does to the loggers, which other tests read."""
    loggers = [logging.getLogger(name) for name in ("d2_maskrcnn", "detectron2", "detectron2.data", "fvcore")]
    before = [(each.level, each.propagate) for each in loggers]
    yield
    for each, (level, propagate) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.propagate = propagate


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real images and reference values, which exist beside the checkout on some machines only."""
    path = REPO.parent / "shared"
    if not (path / "reference").is_dir():
        pytest.skip("no ../shared beside the checkout")
    return path


@pytest.fixture(scope="session")
def load_script():
    """Imports a script of the repository by its path, under a name of its own, once."""

    def load(relative: str):
        name = "script_" + relative.replace("/", "_").removesuffix(".py")
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, REPO / relative)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return load


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory) -> Path:
    """A dataset of 12 training and 6 validation images of 64x64, in COCO format."""
    folder = tmp_path_factory.mktemp("data")
    tiny.draw(folder, train=12, val=6)
    return folder / "shapes"


@pytest.fixture
def tiny_opts(tiny_shapes, tmp_path) -> list[str]:
    """``KEY VALUE`` pairs that make configs/quickstart.yaml a matter of seconds; OUTPUT_DIR is ``tmp_path / "out"``.

    Figures and the inspection's report take longer than everything else, so tests about them switch them on.
    """
    schedule = {"SOLVER__MAX_ITER": 6, "SOLVER__WARMUP_ITERS": 2, "SOLVER__CHECKPOINT_PERIOD": 2}
    return tiny.options(tiny_shapes.parent, tmp_path / "out", D2_MASKRCNN__EVALUATION__FIGURES=False, **schedule)


@pytest.fixture
def tiny_cfg(tiny_opts):
    """``tiny_cfg(KEY, VALUE, ...)``: the frozen config of a training that takes seconds."""
    return lambda *opts: tiny.config([*tiny_opts, *map(str, opts)])


@pytest.fixture
def trainer_of(tiny_cfg):
    """``trainer_of(KEY, VALUE, ..., resume=False)``: a trainer that is ready to train."""
    from d2_maskrcnn.engine import Trainer

    def build(*opts, resume=False):
        torch.manual_seed(0)  # initial weights
        trainer = Trainer(tiny_cfg(*opts))
        trainer.resume_or_load(resume=resume)
        return trainer

    return build


@pytest.fixture
def make_detections():
    """Detections whose masks fill their boxes: ``make_detections(boxes, (H, W), track_ids=None)``."""

    def make(boxes, image_size, track_ids=None, scores=None, classes=None, probabilities=None) -> Detections:
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        count = len(boxes)
        masks = np.ones((count, 28, 28), np.float32) if probabilities is None else probabilities
        return Detections(
            boxes,
            np.full(count, 0.9, np.float32) if scores is None else np.array(scores, np.float32),
            np.zeros(count, np.int64) if classes is None else np.array(classes),
            image_size,
            BoxMasks(boxes, masks, image_size),
            None if track_ids is None else np.array(track_ids),
        )

    return make
