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
    assert settings["SOLVER.LR_SCHEDULER_NAME"] == "WarmupCosineLR"
    passes = settings["D2_MASKRCNN.EARLY_STOPPING.PATIENCE"] * settings["TEST.EVAL_PERIOD"] * batch / count
    assert passes >= epochs / 2
    assert settings["SOLVER.CHECKPOINT_PERIOD"] * 4 >= total


def test_epochs_and_rates_follow_what_is_given():
    settings = plan(records(60), opts=["SOLVER.IMS_PER_BATCH", 4], epochs=10).settings
    assert settings["SOLVER.MAX_ITER"] == 150 and "SOLVER.IMS_PER_BATCH" not in settings
    given = ["SOLVER.MAX_ITER", 40, "SOLVER.BASE_LR", 0.5, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    wanted = plan(records(60), opts=given).settings
    assert not set(given[::2]) & wanted.keys() and 0 < max(wanted["SOLVER.STEPS"]) < 40


@pytest.mark.parametrize(
    ("count", "options", "share"),
    [
        (60, {}, 0.25),
        (1000, {}, 0.25),
        (10_000, {}, 0.5),
        (200_000, {}, 1),
        (60, {"fine_tuning": False}, 1),
        (60, {"from_scratch": True}, 1),
    ],
)
def test_the_rate_of_fine_tuning_follows_the_number_of_images(count, options, share):
    """The config's 0.02 is for batches of 16, the planned batches have 2 images."""
    data = records(1) * count
    assert plan(data, **options).settings["SOLVER.BASE_LR"] == pytest.approx(0.02 * 2 / 16 * share, rel=0.01)
    adam = plan(data, opts=["D2_MASKRCNN.SOLVER.OPTIMIZER", "AdamW"], **options).settings
    assert adam["SOLVER.BASE_LR"] == pytest.approx(0.02 * (2 / 16) ** 0.5 * share, rel=0.01)


def test_given_steps_are_kept():
    settings = plan(records(60), opts=["SOLVER.STEPS", "[30, 40]"]).settings
    assert not {"SOLVER.LR_SCHEDULER_NAME", "SOLVER.STEPS"} & settings.keys()


@pytest.mark.parametrize("opts", [[], ["INPUT.MIN_SIZE_TRAIN", "[64]"]])  # the config has six sizes
def test_sizes_that_are_kept(opts):
    assert "INPUT.MIN_SIZE_TRAIN" not in plan(records(60), opts=opts).settings


@pytest.mark.parametrize(("config", "expected"), [("quickstart", (112, 128, 144)), ("mrcnn_R101_LSJ", None)])
def test_a_single_size_is_varied(config, expected):
    data = summarize(records(60))
    settings = plan_training(load_config(config, ["MODEL.DEVICE", "cpu"]), data, data).settings
    assert settings.get("INPUT.MIN_SIZE_TRAIN") == expected


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
    assert not {"TEST.EVAL_PERIOD", "D2_MASKRCNN.EARLY_STOPPING.PATIENCE"} & planned.settings.keys()
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
