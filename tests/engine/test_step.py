import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn.engine.normalisers import Counts, Part, part_weights, split_batch
from d2_maskrcnn.engine.randomness import image_seeds
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.sampling import sample_labels, sampling_by_image
from detectron2.utils.events import EventStorage

FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "D2_MASKRCNN.RESNETS.ZERO_INIT_RESIDUAL", False]
PLAIN_SGD = ["D2_MASKRCNN.SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", False]
ACCUMULATE = "D2_MASKRCNN.SOLVER.ACCUMULATE"


@pytest.mark.parametrize(("images", "number", "sizes"), [(1, 1, [1]), (8, 2, [4, 4]), (5, 2, [2, 3]), (2, 4, [1, 1])])
def test_split(images, number, sizes):
    batch, seeds = [{"image_id": i} for i in range(images)], list(range(images))
    parts = split_batch(batch, number, seeds)
    assert [len(part.images) for part in parts] == sizes
    assert [record for part in parts for record in part.images] == batch
    assert [seed for part in parts for seed in part.seeds] == seeds
    assert all(isinstance(part, Part) for part in parts)


def test_weights_of_parts_add_up_to_one():
    weights = part_weights([Counts(1, 10, 0), Counts(3, 30, 0)], torch.device("cpu"))
    assert torch.equal(torch.stack(weights), torch.tensor([[0.25, 0.25, 0.0], [0.75, 0.75, 0.0]]))


def test_images_sample_the_same_in_any_batch():
    labels = torch.randint(-1, 3, (500,), generator=torch.Generator().manual_seed(0))
    seeds = image_seeds(seed=3, iteration=5, rank=0, count=4)
    assert seeds == image_seeds(3, 5, 0, 2) + image_seeds(3, 5, 1, 2)

    def draw(some):
        with sampling_by_image(some) as sampling:
            drawn = [sample_labels(labels, 20, 0.5, background=0) for _ in range(2 * len(some))]
        assert (sampling.images, sampling.rois, sampling.foreground) == (len(some), 20 * len(some), 10 * len(some))
        return [torch.cat(pair).tolist() for pair in drawn]

    whole, first, second = draw(seeds), draw(seeds[:2]), draw(seeds[2:])
    assert whole[:4] == first[:2] + second[:2] and whole[4:] == first[2:] + second[2:]
    assert len({tuple(drawn) for drawn in whole}) == 8


def gradients(trainer):
    with EventStorage() as storage:
        trainer._trainer.iter = 0
        trainer._trainer.optimizer.step = lambda *args, **kwargs: None
        trainer._trainer.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    return losses, {name: p.grad.double() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_batch_of_8_equals_its_parts(trainer_of, tmp_path, parts):
    opts = [*FROZEN, *PLAIN_SGD, "SOLVER.IMS_PER_BATCH", 8]
    losses, whole = gradients(trainer_of(*opts))
    part_losses, summed = gradients(trainer_of(*opts, ACCUMULATE, parts))
    assert losses.keys() == part_losses.keys() and len(losses) == 6
    for name, value in losses.items():
        assert part_losses[name] == pytest.approx(value, rel=1e-5), name
    assert whole.keys() == summed.keys() and len(whole) > 90
    for name, value in whole.items():
        assert (summed[name] - value).norm() <= 1e-4 * value.norm() + 1e-9, name


def test_parts_differ_where_they_should_be_weighed(trainer_of):
    """The weights matter: parts have different numbers of objects, so a plain mean of parts is another loss."""
    trainer = trainer_of(*FROZEN, *PLAIN_SGD, "SOLVER.IMS_PER_BATCH", 8)
    step = trainer._trainer
    batch = step._read_batch()
    counts = [step._count_samples(part) for part in split_batch(batch, 4, list(range(8)))]
    assert len({count.foreground for count in counts}) > 1


def test_batch_norm_counts_parts_by_their_images(trainer_of):
    trainer = trainer_of("SOLVER.IMS_PER_BATCH", 4, ACCUMULATE, 2, "SOLVER.MAX_ITER", 1)
    step = trainer._trainer
    part = split_batch(step._read_batch(), 2, [0, 1, 2, 3])[0]
    assert step._count_samples(part) == Counts(2, 2, 2)
    with EventStorage():
        step.iter = 0
        step.run_step()
    assert int(trainer.model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked) == 2


def test_too_many_parts(trainer_of):
    with pytest.raises(UserError, match="ACCUMULATE is 3: expected 1 to 2"):
        trainer_of(ACCUMULATE, 3)


def test_gradient_norm_is_logged_and_clipped(trainer_of):
    _, free = gradients(trainer_of(*PLAIN_SGD, "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.0))
    trainer = trainer_of(*PLAIN_SGD, "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 0.1)
    with EventStorage() as storage:
        step = trainer._trainer
        step.iter = 0
        step.optimizer.step = lambda *args, **kwargs: None
        step.run_step()
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    assert norm > 0.1
    assert storage.latest()["grad_norm"][0] == pytest.approx(float(norm), rel=1e-4)
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(0.1, rel=1e-3)


def test_gradient_that_is_not_finite(trainer_of):
    trainer = trainer_of("D2_MASKRCNN.SOLVER.MAX_GRAD_NORM", 35.0)
    before = trainer.model.state_dict()["backbone.fpn_lateral2.weight"].clone()
    trainer.model.backbone.fpn_lateral2.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"iteration 0 \(the norm of the gradient is nan\).*\.jpg|\.png"):
        trainer.train()
    assert torch.equal(before, trainer.model.state_dict()["backbone.fpn_lateral2.weight"])


def test_planted_image_is_named_and_the_last_checkpoint_kept(trainer_of, tmp_path, tiny_shapes):
    trainer = trainer_of("SOLVER.MAX_ITER", 50, "SOLVER.CHECKPOINT_PERIOD", 2)
    loader = trainer.train_loader
    planted = loader.records[5]["file_name"]
    mapper = loader.mapper

    def plant(record):
        sample = mapper(record)
        if record["file_name"] == planted and trainer.iter >= 4:
            sample["image"] = sample["image"].float() * float("nan")
        return sample

    loader.mapper = plant
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert f"iteration {trainer.iter} " in message
    assert f"alone, these give a loss that is not finite: {planted}." in message
    last = (tmp_path / "out" / "last_checkpoint").read_text()
    good = torch.load(tmp_path / "out" / last, weights_only=True)
    assert good["iteration"] == trainer.iter - 1 - trainer.iter % 2
    assert all(bool(torch.isfinite(value).all()) for value in good["model"].values())
    with Image.open(planted) as image:
        assert np.asarray(image).size  # the name is that of a real file


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16(trainer_of, accumulate):
    trainer = trainer_of("SOLVER.AMP.ENABLED", True, ACCUMULATE, accumulate, "SOLVER.MAX_ITER", 3)
    assert trainer._trainer.amp_dtype is torch.bfloat16
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
    """float16: an infinite gradient is left out and the scale halved, but not for ever."""
    trainer = trainer_of("SOLVER.MAX_ITER", 3)
    trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    weight = trainer.model.backbone.fpn_lateral2.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(UserError, match="iteration 1"):
        trainer.train()
    assert torch.equal(before, weight)


def test_counting_takes_one_pass_less_than_there_are_parts(trainer_of):
    trainer = trainer_of(*FROZEN, *PLAIN_SGD, "SOLVER.IMS_PER_BATCH", 4, ACCUMULATE, 4)
    calls = []
    draw = trainer.model.draw_samples
    trainer.model.draw_samples = lambda images: (calls.append(len(images)), draw(images))
    with EventStorage():
        trainer._trainer.iter = 0
        trainer._trainer.run_step()
    assert calls == [1, 1, 1]
