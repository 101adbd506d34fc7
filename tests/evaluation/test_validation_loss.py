import pytest
import torch

from d2_maskrcnn.evaluation.validation_loss import validation_losses
from detectron2.data import DatasetCatalog

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


def test_losses_are_deterministic_and_change_no_state(trainer_of):
    trainer = trainer_of()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    generator = torch.get_rng_state()
    first = validation_losses(trainer.cfg, trainer.model)
    second = validation_losses(trainer.cfg, trainer.model)
    assert first == second and set(first) == LOSSES | {"total_loss"}
    assert first["total_loss"] == pytest.approx(sum(first[name] for name in LOSSES))
    assert trainer.model.training
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_mean_over_images(trainer_of, tiny_cfg):
    trainer = trainer_of()
    whole = validation_losses(trainer.cfg, trainer.model)
    name = trainer.cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)
    means = []
    for index, record in enumerate(records):
        single = f"{name}_image_{index}"
        DatasetCatalog.register(single, lambda record=record: [record])
        cfg = trainer.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (single,)
        means.append(validation_losses(cfg, trainer.model)["loss_mask"])
        DatasetCatalog.remove(single)
    assert len(means) == 6
    assert whole["loss_mask"] == pytest.approx(sum(means) / 6)


def test_names_with_several_datasets(trainer_of):
    trainer = trainer_of()
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    losses = validation_losses(cfg, trainer.model)
    assert set(losses) == {f"{name}/{loss}" for name in cfg.DATASETS.TEST for loss in LOSSES | {"total_loss"}}


def test_images_without_objects_are_used_but_not_datasets_without_annotations(trainer_of, caplog):
    caplog.set_level("INFO")
    trainer = trainer_of()
    name = trainer.cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)
    cfg = trainer.cfg.clone()
    cfg.defrost()
    losses = {}
    for kind, kept in (("empty", []), ("bare", None), ("mixed", records[0]["annotations"])):
        first = {key: value for key, value in records[0].items() if key != "annotations"}
        made = [first if kept is None else {**first, "annotations": kept}, {**records[1], "annotations": []}]
        DatasetCatalog.register(f"{name}_{kind}", lambda made=made: made)
        cfg.DATASETS.TEST = (f"{name}_{kind}",)
        losses[kind] = validation_losses(cfg, trainer.model)
        DatasetCatalog.remove(f"{name}_{kind}")
    assert losses["empty"] == losses["bare"] == {}
    assert f"No validation losses on {name}_empty: it has no annotations" in caplog.text
    assert set(losses["mixed"]) == LOSSES | {"total_loss"}
    assert all(torch.isfinite(torch.tensor(list(losses["mixed"].values()))))


def test_model_without_losses(trainer_of, caplog):
    trainer = trainer_of()
    assert validation_losses(trainer.cfg, torch.nn.Linear(1, 1)) == {}
    assert "Linear has no method 'losses'" in caplog.text
