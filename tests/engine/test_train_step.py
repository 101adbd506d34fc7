import random

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn.engine.train_step import seed_iteration, split_batch
from d2_maskrcnn.errors import UserError
from detectron2.utils.events import EventStorage

FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "D2_MASKRCNN.RESNETS.ZERO_INIT_RESIDUAL", False]
PLAIN_SGD = ["D2_MASKRCNN.SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", False]
# All anchors and proposals are sampled, so no loss depends on random numbers.
ALL_SAMPLED = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000]
ACCUMULATE = "D2_MASKRCNN.SOLVER.ACCUMULATE"
NO_VALIDATION = ["D2_MASKRCNN.DATA.VAL_JSON", "", "D2_MASKRCNN.DATA.VAL_IMAGES", ""]


@pytest.mark.parametrize(("images", "number", "sizes"), [(1, 1, [1]), (8, 2, [4, 4]), (5, 2, [2, 3]), (2, 4, [1, 1])])
def test_split(images, number, sizes):
    batch = [{"image_id": i} for i in range(images)]
    micro_batches = split_batch(batch, number)
    assert [len(micro_batch) for micro_batch in micro_batches] == sizes
    assert [record for micro_batch in micro_batches for record in micro_batch] == batch


def gradients(trainer):
    """Losses and gradients of the first iteration."""
    step = trainer.train_step
    with EventStorage() as storage:
        step.iter = 0
        step.optimizer.step = lambda *args, **kwargs: None
        step.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    return losses, {name: p.grad.double() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("number", [2, 3])
def test_accumulation_averages_the_micro_batches(trainer_of, number):
    """Loss and gradient are those of autograd for the mean over micro-batches, weighted by their images."""
    opts = [*FROZEN, *PLAIN_SGD, *ALL_SAMPLED, "SOLVER.IMS_PER_BATCH", 4, "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.0]
    trainer = trainer_of(*opts)
    batch = trainer.train_step.read_batch()
    micro_batches = {2: [batch[:2], batch[2:]], 3: [batch[:1], batch[1:2], batch[2:]]}[number]
    with EventStorage():
        expected_losses = [trainer.model(micro_batch) for micro_batch in micro_batches]
    shares = [len(micro_batch) / 4 for micro_batch in micro_batches]
    expected = sum(sum(losses.values()) * share for losses, share in zip(expected_losses, shares, strict=True))
    expected.backward()

    losses, accumulated = gradients(trainer_of(*opts, ACCUMULATE, number))
    assert losses["total_loss"] == pytest.approx(expected.item(), rel=1e-5)
    own = {name: p.grad.double() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert own.keys() == accumulated.keys() and len(own) > 90
    for name, value in own.items():
        assert (accumulated[name] - value).norm() <= 1e-4 * value.norm() + 1e-9, name


def test_batch_norm_sees_every_micro_batch_once(trainer_of):
    trainer = trainer_of("SOLVER.IMS_PER_BATCH", 4, ACCUMULATE, 2)
    gradients(trainer)
    assert int(trainer.model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked) == 2


def test_too_many_micro_batches(trainer_of):
    with pytest.raises(UserError, match="ACCUMULATE is 3; expected 1 to 2"):
        trainer_of(ACCUMULATE, 3)


def test_gradient_norm_is_logged_and_clipped(trainer_of):
    _, free = gradients(trainer_of(*PLAIN_SGD, "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.0))
    trainer = trainer_of(*PLAIN_SGD, "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.1)
    with EventStorage() as storage:
        step = trainer.train_step
        step.iter = 0
        step.optimizer.step = lambda *args, **kwargs: None
        step.run_step()
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    assert norm > 0.1
    assert storage.latest()["grad_norm"][0] == pytest.approx(float(norm), rel=1e-4)
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(0.1, rel=1e-3)


def test_non_finite_gradient(trainer_of):
    trainer = trainer_of("D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 35.0)
    before = trainer.model.state_dict()["backbone.fpn_lateral2.weight"].clone()
    trainer.model.backbone.fpn_lateral2.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"iteration 0 \(the norm of the gradient is nan\).*\.(jpg|png)"):
        trainer.train()
    assert torch.equal(before, trainer.model.state_dict()["backbone.fpn_lateral2.weight"])


def test_the_image_with_a_non_finite_loss_is_named_and_the_last_checkpoint_kept(trainer_of, tmp_path, tiny_shapes):
    trainer = trainer_of("SOLVER.MAX_ITER", 50, "SOLVER.CHECKPOINT_PERIOD", 2)
    loader = trainer.train_loader
    broken = loader.records[5]["file_name"]
    mapper = loader.mapper

    def break_image(record):
        sample = mapper(record)
        if record["file_name"] == broken and trainer.iter >= 4:
            sample["image"] = sample["image"].float() * float("nan")
        return sample

    loader.mapper = break_image
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert f"iteration {trainer.iter} " in message
    assert f"the loss is non-finite for these images alone: {broken}." in message
    last = (tmp_path / "out" / "last_checkpoint").read_text()
    good = torch.load(tmp_path / "out" / last, weights_only=True)
    assert good["iteration"] == trainer.iter - 1 - trainer.iter % 2
    assert all(bool(torch.isfinite(value).all()) for value in good["model"].values())
    with Image.open(broken) as image:
        assert np.asarray(image).size  # the name is that of a real file


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16(trainer_of, accumulate):
    trainer = trainer_of("SOLVER.AMP.ENABLED", True, ACCUMULATE, accumulate, "SOLVER.MAX_ITER", 3)
    assert trainer.train_step.amp_dtype is torch.bfloat16
    seen = []
    trainer.model.backbone.fpn_lateral2.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    trainer.train()
    assert seen[0] is torch.bfloat16
    assert all(p.dtype is torch.float32 for p in trainer.model.parameters())
    assert np.isfinite(trainer.storage.latest()["total_loss"][0])


def test_gradient_norm_is_measured_and_checked_without_clipping(trainer_of):
    trainer = trainer_of("D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.0, "SOLVER.MAX_ITER", 1)
    trainer.train()
    assert trainer.storage.latest()["grad_norm"][0] > 0
    broken = trainer_of("D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.0, "OUTPUT_DIR", trainer.cfg.OUTPUT_DIR + "2")
    broken.model.backbone.fpn_lateral2.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="the norm of the gradient is nan"):
        broken.train()


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_a_scaler_that_cannot_scale_less_gives_up(trainer_of):
    """float16: an infinite gradient is skipped and the scale halved, but not forever."""
    trainer = trainer_of("SOLVER.MAX_ITER", 3)
    trainer.train_step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    weight = trainer.model.backbone.fpn_lateral2.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(UserError, match="iteration 1"):
        trainer.train()
    assert torch.equal(before, weight)


def draw_numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_numbers_depend_on_seed_iteration_and_rank():
    seen = set()
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**31 - 1, 10**6, 7)]:
        seed_iteration(*key)
        first = draw_numbers()
        seed_iteration(*key)
        assert draw_numbers() == first
        seen.update(first)
    assert len(seen) == 15


@pytest.mark.parametrize("opts", [(), ("SOLVER.AMP.ENABLED", True, ACCUMULATE, 2)])
def test_activation_checkpointing_changes_no_number(trainer_of, tmp_path, opts):
    """Weights, statistics of batch norms and logged numbers after three iterations are the same, bit for bit."""
    results = []
    for name in ("False", "True"):
        key = ("D2_MASKRCNN.SOLVER.ACTIVATION_CHECKPOINTING", name, "OUTPUT_DIR", tmp_path / name)
        trainer = trainer_of(*key, *opts, "SOLVER.MAX_ITER", 3, "DATASETS.TEST", "()", *NO_VALIDATION)
        trainer.train()
        scalars = {k: v for k, (v, _) in trainer.storage.latest().items() if "loss" in k or k == "grad_norm"}
        results.append((trainer.model.state_dict(), scalars))
    (expected, expected_scalars), (state, scalars) = results
    assert scalars == expected_scalars and "loss_mask" in scalars
    assert all(torch.equal(state[name], value) for name, value in expected.items())
