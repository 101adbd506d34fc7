"""Compare learning rates with Detectron2's (lr_schedules.json), iteration by iteration."""

import json
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, CosineParamScheduler

from detectron2.config import get_cfg
from detectron2.solver import LRMultiplier, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler, build_lr_scheduler

REFERENCE = json.loads((Path(__file__).parent / "lr_schedules.json").read_text())


def make_optimizer(lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def make_cfg(solver):
    cfg = get_cfg()
    cfg.merge_from_list([item for key, value in solver.items() for item in (f"SOLVER.{key}", value)])
    return cfg


def all_rates(cfg):
    optimizer = make_optimizer(cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # also after the last iteration, as in training
    return rates


@pytest.mark.parametrize("reference", [row for row in REFERENCE if "lr" in row], ids=lambda row: str(row["solver"]))
def test_every_rate_of_a_short_schedule(reference):
    assert all_rates(make_cfg(reference["solver"])) == pytest.approx(reference["lr"], rel=1e-12)


@pytest.mark.parametrize("reference", [row for row in REFERENCE if "lr_at" in row], ids=lambda row: str(row["solver"]))
def test_rates_of_a_long_schedule(reference):
    cfg = make_cfg(reference["solver"])
    scheduler = build_lr_scheduler(cfg, make_optimizer(cfg.SOLVER.BASE_LR))
    for iteration, expected in reference["lr_at"].items():
        scheduler.last_epoch = int(iteration)
        assert scheduler.get_lr() == pytest.approx([expected], rel=1e-12), iteration


def test_groups_keep_the_ratio_of_their_base_rates():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 3.0}], lr=1.0)
    scheduler = LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter=4)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr()[1] == pytest.approx(3 * scheduler.get_last_lr()[0])


def test_state_holds_the_iteration_and_resumes():
    cfg = make_cfg({"MAX_ITER": 10, "STEPS": (5,), "WARMUP_ITERS": 3, "BASE_LR": 1.0})
    optimizer = make_optimizer(1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state == {"base_lrs": [1.0], "last_epoch": 6}

    resumed_optimizer = make_optimizer(1.0)
    resumed = build_lr_scheduler(cfg, resumed_optimizer)
    resumed.load_state_dict(state)
    resumed_optimizer.step()
    resumed.step()
    assert resumed.last_epoch == 7
    assert resumed_optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("solver", "named"),
    [
        ({"LR_SCHEDULER_NAME": "NoSuchLR"}, "NoSuchLR"),
        ({"WARMUP_METHOD": "quadratic"}, "quadratic"),
        ({"STEPS": (15, 5), "MAX_ITER": 20}, r"\(15, 5\)"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR": 1.0, "BASE_LR_END": 2.0}, "2.0"),
    ],
)
def test_bad_settings_are_named(solver, named):
    with pytest.raises(ValueError, match=named):
        build_lr_scheduler(make_cfg(solver), make_optimizer(1.0))


def test_steps_beyond_the_end_are_ignored_with_a_warning(caplog):
    cfg = make_cfg({"STEPS": (20, 30), "MAX_ITER": 20, "WARMUP_ITERS": 0, "BASE_LR": 1.0})
    assert all_rates(cfg) == [1.0] * 20
    assert "SOLVER.STEPS" in caplog.text


def test_multiplier_must_be_a_parameter_scheduler():
    with pytest.raises(ValueError, match=r"3\.5"):
        LRMultiplier(make_optimizer(1.0), 3.5, max_iter=3)


def test_warmup_ends_where_the_schedule_goes_on():
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.001, 0.25)
    assert schedule(0.0) == pytest.approx(0.001)
    assert schedule(0.25 - 1e-4) == pytest.approx(CosineParamScheduler(1, 0)(0.25), abs=1e-3)
    assert WarmupParamScheduler(ConstantParamScheduler(2.0), 0.5, 0.0)(0.0) == 2.0


def rates(scheduler_class, iterations, *args, **kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = scheduler_class(optimizer, *args, **kwargs), []
    for _ in range(iterations):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_schedules_of_plain_loops():
    stepped = rates(WarmupMultiStepLR, 6, [3, 5], gamma=0.1, warmup_factor=0.5, warmup_iters=2)
    assert stepped == pytest.approx([0.5, 0.75, 1.0, 0.1, 0.1, 0.01])
    constant = rates(WarmupMultiStepLR, 3, [9], warmup_factor=0.25, warmup_iters=2, warmup_method="constant")
    assert constant == pytest.approx([0.25, 0.25, 1.0])
    assert rates(WarmupCosineLR, 5, 4, warmup_iters=0) == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    with pytest.raises(ValueError, match="increasing order"):
        rates(WarmupMultiStepLR, 1, [5, 3])
    with pytest.raises(ValueError, match="'exponential'"):
        rates(WarmupCosineLR, 1, 4, warmup_method="exponential")
