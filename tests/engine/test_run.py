"""Train and evaluate in one call, with a narrow model on a CPU."""

import contextlib
import io
import json
import shutil

import pytest
import torch
import yaml

import d2_maskrcnn
import d2_maskrcnn.engine
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.errors import UserError
from tools.fuzz.tiny import NARROW_MODEL

SMALL = [
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 50, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "", "DATALOADER.NUM_WORKERS", 0, "SEED", 3,
    *(item for pair in NARROW_MODEL.items() for item in pair),
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_shapes, tmp_path_factory):
    """A training of one epoch, planned from the data, and what it printed."""

    output = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = d2_maskrcnn.train(
            tiny_shapes, weights="scratch", epochs=1, image_size=64, output=output, overrides=SMALL
        )
    return result, printed.getvalue().splitlines()


def test_the_result(trained):
    result, _ = trained
    assert result.best.name == "model_best.pth" and result.last.name == "model_final.pth"
    assert result.best.is_file() and result.last.is_file() and result.best.parent == result.output
    assert {"segm/AP", "bbox/AP", "validation/total_loss"} <= result.metrics.keys()
    metadata = torch.load(result.last, weights_only=True)["metadata"]
    assert metadata["thing_classes"] == ["circle", "square", "triangle", "star"]
    assert metadata["category_ids"] == [1, 2, 3, 4] and metadata["iteration"] == 5
    assert metadata["metrics"] == result.metrics


def test_what_is_printed(trained):
    result, lines = trained
    first = next(index for index, line in enumerate(lines) if line.startswith("epoch "))
    assert first <= 20, lines
    text = "\n".join(lines)
    assert "train  12 images" in text and "val    6 images" in text and "classes circle, square, triangle, star" in text
    assert (
        "epochs      1 (6 iterations with batches of 2)" in text and "Evaluation after epoch 1.0 (iteration 6)" in text
    )
    assert str(result.output) in lines[-3]
    assert "copypaste" not in text and "copypaste" in (result.output / "log.txt").read_text()


def test_the_plan_is_a_config_that_can_be_edited(trained):
    result, _ = trained
    plan = yaml.safe_load((result.output / "plan.yaml").read_text())
    assert plan["SOLVER"]["MAX_ITER"] == 6 and plan["INPUT"]["MIN_SIZE_TEST"] == 64
    assert plan["D2_MASKRCNN"]["EARLY_STOPPING"]["PATIENCE"] == 5
    assert len((result.output / "plan.yaml").read_text().splitlines()) < 100
    cfg = load_config(str(result.output / "plan.yaml"))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4 and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 16


def assert_stored(result, metrics):
    stored = {name: value for name, value in result.metrics.items() if not name.startswith("validation/")}
    assert {name: metrics[name] for name in stored} == pytest.approx(stored)


def test_evaluating_a_checkpoint_alone_gives_its_metrics(trained, tiny_shapes, tmp_path):
    result, _ = trained
    found = d2_maskrcnn.evaluate(result.best, output=tmp_path / "a")
    assert_stored(result, found)
    assert (tmp_path / "a" / "inference" / "results.json").is_file()
    again = d2_maskrcnn.evaluate(result.best, tiny_shapes / "annotations" / "instances_val.json", output=tmp_path / "b")
    assert again == pytest.approx(found, nan_ok=True)


def test_a_predictor_needs_nothing_but_the_checkpoint(trained, tmp_path):
    result, _ = trained
    content = torch.load(result.last, weights_only=True)
    content["metadata"]["category_ids"] = [3, 5, 7, 11]
    torch.save(content, tmp_path / "model.pth")
    d2_maskrcnn.save_weights(str(tmp_path / "model.pth"), tmp_path / "model.safetensors")
    for name in ("model.pth", "model.safetensors"):
        predictor = d2_maskrcnn.Predictor(tmp_path / name, device="cpu")
        assert predictor.class_names == ["circle", "square", "triangle", "star"]
        assert predictor.category_ids == [3, 5, 7, 11]


def test_evaluating_in_half_precision_and_by_tiles(trained, tmp_path):
    result, _ = trained
    keys = "D2_MASKRCNN.INFERENCE."
    expected = d2_maskrcnn.evaluate(result.best, output=tmp_path / "b", overrides=[keys + "TILE", 64])
    assert_stored(result, expected)  # one tile an image
    overrides = [keys + "TILE", 48, keys + "PRECISION", "auto"]
    found = d2_maskrcnn.evaluate(result.best, output=tmp_path / "c", overrides=overrides)
    assert found.keys() == expected.keys()
    detections = json.loads((tmp_path / "c" / "inference" / "coco_instances_results.json").read_text())
    assert all(each["segmentation"]["size"] == [64, 64] for each in detections)
    assert list((tmp_path / "c" / "predictions").iterdir())


def test_fine_tuning_with_other_classes_uses_the_model_of_the_weights(trained, tiny_shapes, tmp_path, capsys):
    result, _ = trained
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    content["categories"] = content["categories"][:2]
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] <= 2]
    data = tiny_shapes / "train" / "two_classes.json"
    data.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has the categories circle, square, the model the classes circle, square, tri"):
        d2_maskrcnn.evaluate(result.best, data, output=tmp_path / "x")
    tuned = d2_maskrcnn.train(data, weights=str(result.best), epochs=0.2, output=tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("Fine-tuning from 4 classes to 2: ") == 1 and "start from random values" in printed
    assert "images of " in printed and (tmp_path / "out" / "data" / "val.json").is_file()
    model = torch.load(tuned.last, weights_only=True)["model"]
    assert model["roi_heads.box_predictor.cls_score.weight"].shape == (3, 32)
    data.unlink()


def test_a_stopped_training_resumes_with_its_plan(tiny_shapes, tmp_path, capsys, monkeypatch):
    class Killed(Exception):
        pass

    def evaluate(trainer):
        raise Killed

    options = {"weights": "scratch", "epochs": 1, "image_size": 64, "output": tmp_path / "out"}
    saving = [*SMALL, "SOLVER.CHECKPOINT_PERIOD", 2]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(d2_maskrcnn.engine.Trainer, "evaluate", evaluate)
        d2_maskrcnn.train(tiny_shapes, **options, overrides=saving)
    capsys.readouterr()
    d2_maskrcnn.train(tiny_shapes, **options, overrides=saving, resume=True)
    printed = capsys.readouterr().out
    assert "Resuming with the plan in" in printed and "iteration 6/6" in printed and "iteration 4/6" not in printed
    assert "Resuming with another config" not in printed


def test_bad_arguments(trained, tiny_shapes, tmp_path):
    result, _ = trained
    with pytest.raises(UserError, match="already contains a training"):
        d2_maskrcnn.train(tiny_shapes, weights="scratch", output=result.output)
    with pytest.raises(UserError, match="expected data, or a config without epochs"):
        d2_maskrcnn.train(epochs=3)
    with pytest.raises(UserError, match=r"nowhere\.pth: file not found"):
        d2_maskrcnn.train(tiny_shapes, weights="nowhere.pth", output=tmp_path / "a")
    with pytest.raises(UserError, match="no such file or folder"):
        d2_maskrcnn.train(tmp_path / "nowhere", output=tmp_path / "b")


def test_a_finished_training_that_is_resumed_names_no_iterations(trained, tmp_path, capsys):
    result, _ = trained
    output = shutil.copytree(result.output, tmp_path / "out")
    command = ["train", "--resume", "--config-file", str(output / "plan.yaml"), "OUTPUT_DIR", str(output)]
    assert main(command) == 0
    text = capsys.readouterr()
    printed = text.out + text.err
    assert "This training is finished" in printed and "Training from" not in printed
    assert "Evaluation after epoch 1.0 (iteration 6)" in printed
    assert f"predict {output / 'model_best.pth'}" in printed


def test_a_resumed_training_names_options_that_its_plan_lacks(trained, tiny_shapes, tmp_path, capsys):
    output = shutil.copytree(trained[0].output, tmp_path / "out")
    options = {"weights": "scratch", "output": output, "overrides": SMALL, "resume": True}
    d2_maskrcnn.train(tiny_shapes, **options, epochs=2, image_size=64)
    assert "keeps its plan: SOLVER.MAX_ITER is 6; set SOLVER.MAX_ITER 12." in capsys.readouterr().out
    d2_maskrcnn.train(tiny_shapes, **options, epochs=1, image_size=64)
    assert "keeps its plan" not in capsys.readouterr().out


def test_evaluating_without_the_data_of_the_training(trained, tiny_shapes, tmp_path):
    overrides = ["D2_MASKRCNN.DATA.TRAIN_JSON", "nowhere.json", "D2_MASKRCNN.DATA.VAL_JSON"]
    with pytest.raises(UserError, match=r"validation data gone\.json is not there; name the data to evaluate on"):
        d2_maskrcnn.evaluate(trained[0].best, output=tmp_path, overrides=[*overrides, "gone.json"])
    val = str(tiny_shapes / "annotations" / "instances_val.json")
    metrics = d2_maskrcnn.evaluate(trained[0].best, output=tmp_path, overrides=[*overrides, val])
    assert metrics["segm/AP"] == pytest.approx(trained[0].metrics["segm/AP"])
