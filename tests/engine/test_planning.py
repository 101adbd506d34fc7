import pytest

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.engine.data_summary import summarize
from d2_maskrcnn.engine.planning import plan_training
from d2_maskrcnn.errors import UserError


def records(count, side=100, objects=1, rle=False):
    """Images of 640x480 with square objects."""
    mask = {"size": [480, 640], "counts": "x"} if rle else [[0, 0, side, 0, side, side]]
    annotation = {"bbox": [0, 0, side, side], "segmentation": mask, "category_id": 0}
    crowd = {**annotation, "iscrowd": 1, "segmentation": {}}
    return [{"height": 480, "width": 640, "annotations": [annotation] * objects + [crowd]} for _ in range(count)]


def plan(train, val=None, opts=(), **options):
    cfg = load_config("mrcnn_R101", ["MODEL.DEVICE", "cpu", *map(str, opts)])
    summaries = summarize(train), summarize(val or train[:10])
    return plan_training(cfg, *summaries, given=opts[::2], **options)


@pytest.mark.parametrize("count", [1, 2, 61, 5000])
def test_the_schedule_follows_the_number_of_images(count):
    settings = plan(records(count)).settings
    batch, total = settings["SOLVER.IMS_PER_BATCH"], settings["SOLVER.MAX_ITER"]
    assert batch == min(2, count)
    epochs = total * batch / count
    assert 12 <= epochs <= 101 and (count > 40 or epochs == pytest.approx(100, abs=1))
    assert 0 < settings["TEST.EVAL_PERIOD"] <= total and total / settings["TEST.EVAL_PERIOD"] <= 20
    assert settings["SOLVER.WARMUP_ITERS"] <= total / 10
    steps = settings["SOLVER.STEPS"]
    assert list(steps) == sorted(set(steps)) and all(0 < step < total for step in steps)
    assert settings["SOLVER.CHECKPOINT_PERIOD"] * 4 >= total


def test_epochs_and_rates_follow_what_is_given():
    settings = plan(records(60), opts=["SOLVER.IMS_PER_BATCH", 4], epochs=10).settings
    assert settings["SOLVER.MAX_ITER"] == 150 and "SOLVER.IMS_PER_BATCH" not in settings
    wanted = plan(records(60), opts=["SOLVER.MAX_ITER", 40, "SOLVER.BASE_LR", 0.5]).settings
    assert not {"SOLVER.MAX_ITER", "SOLVER.BASE_LR"} & wanted.keys() and max(wanted["SOLVER.STEPS"]) < 40
    assert plan(records(60)).settings["SOLVER.BASE_LR"] == pytest.approx(0.02 * 2 / 16)
    adam = plan(records(60), opts=["D2_MASKRCNN.SOLVER.OPTIMIZER", "AdamW"]).settings
    assert adam["SOLVER.BASE_LR"] == pytest.approx(0.02 * (2 / 16) ** 0.5, rel=0.01)


SMALL = ["INPUT.MIN_SIZE_TRAIN", "[128]", "INPUT.MAX_SIZE_TRAIN", 213]


@pytest.mark.parametrize(
    ("count", "opts", "options", "expected"),
    [
        (5000, SMALL, {}, 16),  # as many as the learning rate was chosen for
        (60, SMALL, {}, 8),  # 500 iterations
        (60, SMALL, {"epochs": 1}, 2),
        (5, SMALL, {}, 2),
        (1, SMALL, {}, 1),
        (5000, [*SMALL, "D2_MASKRCNN.SOLVER.REFERENCE_BATCH", 4], {}, 4),
        (5000, [], {"processes": 3}, 6),
        (60, [], {"processes": 8}, 8),
    ],
)
def test_batches_follow_the_size_and_number_of_images(count, opts, options, expected):
    assert plan(records(count), opts=opts, **options).settings["SOLVER.IMS_PER_BATCH"] == expected


def test_a_single_evaluation_at_the_end():
    planned = plan(records(60), opts=["TEST.EVAL_PERIOD", 0])
    assert "TEST.EVAL_PERIOD" not in planned.settings
    assert any(
        line.startswith("evaluation") and "at the end; the best segm/AP is kept" in line for line in planned.lines
    )


def test_masks_and_crowded_images():
    settings = plan(records(20, objects=130, rle=True)).settings
    assert settings["INPUT.MASK_FORMAT"] == "bitmask" and settings["TEST.DETECTIONS_PER_IMAGE"] == 200
    assert plan(records(20)).settings["INPUT.MASK_FORMAT"] == "polygon"
    assert "TEST.DETECTIONS_PER_IMAGE" not in plan(records(20)).settings


def test_anchors_are_compared_with_the_objects():
    """Images are enlarged to 800 pixels, by 5 / 3."""
    assert any(line.startswith("anchors") and line.endswith("they fit") for line in plan(records(9)).lines)
    small = plan(records(9, side=6))
    assert "MODEL.ANCHOR_GENERATOR.SIZES" not in small.settings
    assert any("100% do not fit; consider INPUT.MIN_SIZE_* 1600" in line for line in small.lines)
    scratch = plan(records(9, side=6), from_scratch=True)
    assert scratch.settings["MODEL.ANCHOR_GENERATOR.SIZES"] == [[16], [32], [64], [128], [256]]
    assert len(scratch.lines) <= 10


@pytest.mark.parametrize("epochs", [0, -3, float("nan"), float("inf")])
def test_numbers_of_epochs_that_cannot_be_trained(epochs):
    with pytest.raises(UserError, match=r"epochs is .*expected a number above 0"):
        plan(records(10), epochs=epochs)


def test_batches_without_an_image():
    cfg, data = load_config("mrcnn_R101"), summarize(records(10))
    cfg.SOLVER.IMS_PER_BATCH = 0
    with pytest.raises(UserError, match="IMS_PER_BATCH is 0"):
        plan_training(cfg, data, data, given=["SOLVER.IMS_PER_BATCH"])
