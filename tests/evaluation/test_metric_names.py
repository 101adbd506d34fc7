import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.evaluation.metric_names import evaluation_metrics, resolve_metric
from detectron2.evaluation.testing import flatten_results_dict

METRIC = "D2_MASKRCNN.BEST_CHECKPOINT.METRIC"
MODE = "D2_MASKRCNN.BEST_CHECKPOINT.MODE"


@pytest.mark.parametrize("opts", [[], ["D2_MASKRCNN.EMA.ENABLED", True]])
def test_names_are_those_that_an_evaluation_logs(trainer_of, opts):
    trainer = trainer_of(*opts)
    logged = flatten_results_dict(trainer.evaluate())
    assert set(evaluation_metrics(trainer.cfg)) == set(logged)


def test_classes_of_a_dataset_that_was_not_loaded_yet(tiny_cfg, tiny_shapes, request):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    name = "not_loaded_yet"
    register_coco_instances(name, {}, str(tiny_shapes / "annotations" / "instances_val.json"), str(tiny_shapes / "val"))
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    cfg = tiny_cfg().clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (name,)
    assert "segm/AP-circle" in evaluation_metrics(cfg)


def two_test_sets(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    return cfg


def test_metric_without_dataset_refers_to_the_first_test_set(tiny_cfg, caplog):
    caplog.set_level("INFO")
    cfg = two_test_sets(tiny_cfg("D2_MASKRCNN.EMA.ENABLED", True))
    first = cfg.DATASETS.TEST[0]
    assert resolve_metric(cfg, "BEST_CHECKPOINT") == f"{first}/segm/AP"
    assert f"METRIC segm/AP: following {first}/segm/AP" in caplog.text
    for short, full in (
        ("ema/bbox/AP50", f"ema/{first}/bbox/AP50"),
        ("validation/total_loss", f"validation/{first}/total_loss"),
    ):
        cfg.D2_MASKRCNN.BEST_CHECKPOINT.METRIC = short
        assert resolve_metric(cfg, "BEST_CHECKPOINT") == full


def test_several_test_sets_leave_a_best_checkpoint(trainer_of, tmp_path, tiny_cfg):
    from d2_maskrcnn.engine import Trainer

    cfg = two_test_sets(tiny_cfg("SOLVER.MAX_ITER", 1, METRIC, "validation/total_loss", MODE, "min"))
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "out" / "model_best.pth").is_file()


def test_segm_metric_is_bbox_metric_without_masks(tiny_cfg):
    assert resolve_metric(tiny_cfg("MODEL.MASK_ON", False), "BEST_CHECKPOINT") == "bbox/AP"


@pytest.mark.parametrize("wrong", ["segm/APP", "validation/loss", "ema/segm/AP", "sgem", "segm/AP-cricle"])
def test_unknown_metric_is_refused_before_training(trainer_of, wrong):
    with pytest.raises(UserError) as error:
        trainer_of(METRIC, wrong)
    text = str(error.value)
    assert f"D2_MASKRCNN.BEST_CHECKPOINT.METRIC: there is no metric {wrong!r}." in text and "\n" not in text
    for name in ("bbox/AP", "segm/AP50", "segm/AP-<class>", "validation/total_loss", "validation/loss_mask"):
        assert name in text
    if wrong == "segm/AP-cricle":
        assert "Did you mean segm/AP-circle?" in text


@pytest.mark.parametrize("metric", ["made/up", "total_loss", "segm/AP-circle"])
def test_accepted_names(trainer_of, metric):
    trainer = trainer_of(METRIC, metric)
    assert trainer.best_checkpoint.metric == metric


def test_maximizing_a_loss_is_a_warning(trainer_of, caplog):
    trainer_of(METRIC, "validation/total_loss")
    assert "MODE max looks for the highest validation/total_loss; set MODE to min?" in caplog.text
    caplog.clear()
    trainer_of(METRIC, "validation/total_loss", MODE, "min")
    assert "highest" not in caplog.text
