import json
import logging
import math

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage


@META_ARCH_REGISTRY.register()
class Echo(nn.Module):
    """Return the input."""

    def __init__(self, cfg):
        super().__init__()
        self.marker = nn.Parameter(torch.zeros(1))

    def forward(self, batched_inputs):
        return [{"training": self.training, "grad": torch.is_grad_enabled(), **record} for record in batched_inputs]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], {"config_file": "", "resume": False, "eval_only": False, "num_gpus": 1, "num_machines": 1, "opts": []}),
        (
            ["--config-file", "a.yaml", "--resume", "--eval-only", "--num-gpus", "2", "--num-machines", "3"]
            + ["--machine-rank", "1", "--dist-url", "auto", "SOLVER.BASE_LR", "0.1"],
            {
                "config_file": "a.yaml",
                "resume": True,
                "eval_only": True,
                "num_gpus": 2,
                "num_machines": 3,
                "machine_rank": 1,
                "dist_url": "auto",
                "opts": ["SOLVER.BASE_LR", "0.1"],
            },
        ),
    ],
)
def test_command_line(line, expected):
    arguments = vars(default_argument_parser().parse_args(line))
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["dist_url"] == "auto" or arguments["dist_url"].startswith("tcp://127.0.0.1:")


def test_help_shows_examples_or_the_given_text():
    assert "--dist-url tcp://" in default_argument_parser().format_help()
    assert default_argument_parser("my own text").format_help().strip().endswith("my own text")


@pytest.fixture
def quiet_loggers():
    """Remove the handlers that default_setup adds."""
    yield
    for name in ("detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True


@pytest.mark.usefixtures("quiet_loggers")
def test_setup_writes_config_and_log_and_seeds(tmp_path):
    config_file = tmp_path / "mine.yaml"
    config_file.write_text("SOLVER: {BASE_LR: 0.125}\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(config_file))
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "out" / "deep"), "SEED", 11])
    args = default_argument_parser().parse_args(["--config-file", str(config_file)])

    default_setup(cfg, args)
    first = torch.rand(1), np.random.rand()
    default_setup(cfg, args)
    assert (torch.rand(1), np.random.rand()) == first

    saved = get_cfg()
    saved.merge_from_file(str(tmp_path / "out" / "deep" / "config.yaml"))
    assert yaml.safe_load(saved.dump()) == yaml.safe_load(cfg.dump())
    log = (tmp_path / "out" / "deep" / "log.txt").read_text()
    assert "BASE_LR: 0.125" in log  # of the file and of the whole config
    assert str(args) in log
    assert str(torch.__version__) in log


@pytest.fixture
def float32_settings():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def setup_with_precision(folder, precision):
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), "FLOAT32_PRECISION", precision])
    default_setup(cfg, default_argument_parser().parse_args([]))


@pytest.mark.usefixtures("quiet_loggers", "float32_settings")
@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_setup_sets_the_precision_of_gpus(tmp_path, monkeypatch, precision, tf32):
    setup_with_precision(tmp_path, precision)
    assert torch.get_float32_matmul_precision() == "highest"  # CPUs stay exact
    # The flags exist without a GPU too.
    monkeypatch.setattr("detectron2.engine.setup.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("detectron2.engine.setup.collect_env_info", str)
    setup_with_precision(tmp_path, precision)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.usefixtures("quiet_loggers")
def test_an_unknown_precision_is_named(tmp_path):
    with pytest.raises(ValueError, match="exact"):
        setup_with_precision(tmp_path, "exact")


def test_default_writers_write_files(tmp_path):
    writers = default_writers(str(tmp_path / "out"), max_iter=10)
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 1.5)
        for writer in writers:
            writer.write()
    for writer in writers:
        writer.close()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["loss"] == 1.5
    assert list((tmp_path / "out").glob("events.out.tfevents*"))


def test_one_process_needs_no_wrapper():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model


def test_training_leaves_checkpoints_numbers_and_results(tiny, dataset, tmp_path):
    cfg = tiny.make_cfg(dataset, tmp_path / "out", "TEST.EVAL_PERIOD", 4)
    trainer = tiny.TinyTrainer(cfg)
    assert [type(hook).__name__ for hook in trainer._hooks] == [
        "IterationTimer",
        "LRScheduler",
        "PeriodicCheckpointer",
        "EvalHook",
        "PeriodicWriter",
    ]
    trainer.resume_or_load(resume=False)
    results = trainer.train()

    assert results["bbox"]["AP-square"] == pytest.approx(100)
    assert results["segm"]["AP-square"] == pytest.approx(100)
    assert math.isnan(results["segm"]["AP-ghost"])  # there is none
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= names
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert {line["iteration"] for line in lines if "bbox/AP-square" in line} == {3, 8}
    last = next(line for line in lines if "lr" in line)
    assert last["iteration"] == 7
    assert last["lr"] == pytest.approx(0.005)
    assert {"loss_layer", "loss_steady", "total_loss", "time", "data_time"} <= last.keys()


def steady_weights(trainer):
    return trainer.model.steady.item()


def test_resuming_goes_on_where_the_training_stopped(tiny, dataset, tmp_path):
    whole = tiny.TinyTrainer(tiny.make_cfg(dataset, tmp_path / "whole"))
    whole.resume_or_load(resume=True)  # nothing there yet
    whole.train()

    class Stop(Exception):
        pass

    class Stopped(tiny.TinyTrainer):
        def run_step(self):
            if self.iter == 7:
                raise Stop
            super().run_step()

    cfg = tiny.make_cfg(dataset, tmp_path / "parts")
    with pytest.raises(Stop):
        Stopped(cfg).train()
    resumed = tiny.TinyTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 6  # the last checkpoint is of iteration 5
    resumed.train()
    # This weight's gradient does not depend on the images: equal bits need momentum, rate and iteration as they were.
    assert steady_weights(resumed) == steady_weights(whole)

    again = tiny.TinyTrainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 8
    again.train()
    assert steady_weights(again) == steady_weights(whole)
    assert again.iter == 8


def test_without_resume_only_the_weights_are_loaded(tiny, dataset, tmp_path):
    first = tiny.TinyTrainer(tiny.make_cfg(dataset, tmp_path / "out"))
    first.train()
    second = tiny.TinyTrainer(
        tiny.make_cfg(dataset, tmp_path / "out", "MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    )
    second.resume_or_load(resume=False)
    assert second.start_iter == 0
    assert steady_weights(second) == steady_weights(first)
    assert second.optimizer.state_dict()["state"] == {}


def test_mixed_precision_of_the_config(tiny, dataset, tmp_path):
    trainer = tiny.TinyTrainer(tiny.make_cfg(dataset, tmp_path / "out", "SOLVER.AMP.ENABLED", True))
    assert trainer._trainer.precision == torch.bfloat16  # on a CPU
    trainer.train()
    resumed = tiny.TinyTrainer(trainer.cfg)
    resumed.resume_or_load()
    assert resumed.start_iter == 8


def test_precise_bn_of_the_config(tiny, dataset, tmp_path):
    settings = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3)
    trainer = tiny.TinyTrainer(tiny.make_cfg(dataset, tmp_path / "out", *settings))
    assert "PreciseBN" in [type(hook).__name__ for hook in trainer._hooks]
    trainer.train()
    assert trainer.model.norm.running_mean.item() > 0.05


class CountImages(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(inputs)

    def evaluate(self):
        return {"images": {"number": self.count}}


def test_testing_with_and_without_evaluators(tiny, dataset, tmp_path, caplog):
    cfg = tiny.make_cfg(dataset, tmp_path / "out")
    model = build_model(cfg)
    assert tiny.TinyTrainer.test(cfg, model, CountImages()) == {"images": {"number": 6}}
    assert tiny.TinyTrainer.test(cfg, model)["bbox"]["AP-square"] == pytest.approx(100)
    assert DefaultTrainer.test(cfg, model) == {}
    assert "build_evaluator" in caplog.text
    with pytest.raises(ValueError, match="2 evaluators"):
        DefaultTrainer.test(cfg, model, [CountImages(), CountImages()])
    other = tiny.make_dataset(tmp_path / "more", f"{dataset}_more", num_images=2)
    cfg.DATASETS.TEST = (dataset, other)
    results = DefaultTrainer.test(cfg, model, [CountImages(), CountImages()])
    assert results == {dataset: {"images": {"number": 6}}, other: {"images": {"number": 2}}}
    assert model.training


@pytest.mark.parametrize(
    ("expected", "fails"), [([["bbox", "AP-square", 100.0, 0.1]], False), ([["bbox", "AP", 3.0, 0.1]], True)]
)
def test_expected_results_are_verified(tiny, dataset, tmp_path, expected, fails):
    cfg = tiny.make_cfg(dataset, tmp_path / "out", "TEST.EXPECTED_RESULTS", expected, "SOLVER.MAX_ITER", 1)
    trainer = tiny.TinyTrainer(cfg)
    if fails:
        with pytest.raises(SystemExit):
            trainer.train()
    else:
        trainer.train()


@pytest.mark.parametrize(
    ("workers", "batch", "rate", "iterations", "warmup", "steps", "checkpoint", "evaluate"),
    [  # results of Detectron2
        (8, 16, 0.02, 1000, 100, (500, 800), 55, 77),
        (4, 8, 0.01, 2000, 200, (1000, 1600), 110, 154),
        (3, 6, 0.0075, 2667, 267, (1333, 2133), 147, 205),
        (5, 10, 0.0125, 1600, 160, (800, 1280), 88, 123),
    ],
)
def test_schedule_follows_the_number_of_processes(
    workers, batch, rate, iterations, warmup, steps, checkpoint, evaluate
):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.02, "SOLVER.MAX_ITER", 1000]
        + ["SOLVER.WARMUP_ITERS", 100, "SOLVER.STEPS", (500, 800), "SOLVER.CHECKPOINT_PERIOD", 55]
        + ["TEST.EVAL_PERIOD", 77]
    )
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, workers)
    assert (scaled is cfg) == (workers == 8)
    assert scaled.is_frozen()
    solver = scaled.SOLVER
    assert (batch, iterations, warmup) == (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.WARMUP_ITERS)
    assert (steps, checkpoint, evaluate) == (solver.STEPS, solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD)
    assert pytest.approx(rate) == solver.BASE_LR
    assert workers == solver.REFERENCE_WORLD_SIZE


def test_a_batch_that_cannot_be_divided_is_named():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.REFERENCE_WORLD_SIZE", 3, "SOLVER.IMS_PER_BATCH", 16])
    with pytest.raises(ValueError, match="16"):
        DefaultTrainer.auto_scale_workers(cfg, 2)


def echo_cfg(*settings):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "Echo", "MODEL.DEVICE", "cpu", *settings])
    return cfg


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_predictor_prepares_an_image_as_the_model_wants_it(channels):
    image = np.random.RandomState(0).randint(0, 255, (30, 50, 3), dtype=np.uint8)
    predictor = DefaultPredictor(
        echo_cfg("INPUT.FORMAT", channels, "INPUT.MIN_SIZE_TEST", 60, "INPUT.MAX_SIZE_TEST", 90)
    )
    output = predictor(image)
    assert (output["height"], output["width"]) == (30, 50)
    assert output["image"].shape == (3, 54, 90)  # the longer side decides
    assert (output["image"].dtype, output["training"], output["grad"]) == (torch.float32, False, False)
    expected = T.ResizeTransform(30, 50, 54, 90, 2).apply_image(image)
    expected = expected[:, :, ::-1] if channels == "RGB" else expected
    np.testing.assert_array_equal(output["image"].numpy(), expected.transpose(2, 0, 1).astype(np.float32))


def test_predictor_loads_the_weights_and_keeps_the_config(tmp_path):
    torch.save({"model": {"marker": torch.tensor([7.0])}}, tmp_path / "weights.pth")
    cfg = echo_cfg("MODEL.WEIGHTS", str(tmp_path / "weights.pth"))
    predictor = DefaultPredictor(cfg)
    assert predictor.model.marker.item() == 7.0
    assert predictor.cfg is not cfg


def test_predictor_takes_class_names_from_the_checkpoint(tmp_path):
    state = {"model": {"marker": torch.tensor([7.0])}, "metadata": {"thing_classes": ["cat", "dog"]}}
    torch.save(state, tmp_path / "weights.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "weights.pth"))
    assert DefaultPredictor(echo_cfg(*weights)).metadata.thing_classes == ["cat", "dog"]
    assert DefaultPredictor(echo_cfg(*weights, "DATASETS.TEST", ("nameless",))).metadata.thing_classes == ["cat", "dog"]
    MetadataCatalog.get("named").thing_classes = ["ant", "bee"]
    predictor = DefaultPredictor(echo_cfg(*weights, "DATASETS.TEST", ("named",)))
    assert predictor.metadata is MetadataCatalog.get("named") and predictor.metadata.thing_classes == ["ant", "bee"]
    MetadataCatalog.pop("named")


def test_predictor_knows_two_orders_of_channels():
    with pytest.raises(ValueError, match="YUV"):
        DefaultPredictor(echo_cfg("INPUT.FORMAT", "YUV-BT.601"))


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (None, r"got a NoneType \(cv2\.imread returns None for a file that it cannot read\)"),
        (torch.zeros(3, 4, 4), "got a Tensor"),
        (np.zeros((4, 5), np.uint8), r"got an array of shape \(4, 5\)"),
        (np.zeros((4, 5, 4), np.uint8), r"got an array of shape \(4, 5, 4\)"),
        (np.zeros((4, 5, 3)), "got float64 with values from 0.0 to 0.0"),
        (np.full((4, 5, 3), 0.5), "got float64 with values from 0.5 to 0.5"),
    ],
)
def test_predictor_names_what_is_not_an_image(image, got):
    with pytest.raises(ValueError, match=rf"expected an image .*\(H, W, 3\) uint8 in BGR order, {got}"):
        DefaultPredictor(echo_cfg())(image)
