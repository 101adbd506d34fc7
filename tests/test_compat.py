"""What :mod:`d2_maskrcnn.compat` does with Detectron2's internals, on whichever engine is in use.

Run on an installed Detectron2 with ``D2_MASKRCNN_ENGINE=installed``.
"""

import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from d2_maskrcnn import compat
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage


@pytest.fixture
def step():
    model = torch.nn.Linear(1, 1)
    return SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_trainer_delegates_to_the_step_that_was_set(step):
    trainer = object.__new__(DefaultTrainer)  # without __init__, which builds a model and its loader
    TrainerBase.__init__(trainer)
    compat.set_train_step(trainer, step)
    assert compat.train_step(trainer) is step
    assert trainer.model is step.model and trainer.optimizer is step.optimizer


def test_registered_hooks():
    trainer, first, second = TrainerBase(), HookBase(), HookBase()
    trainer.register_hooks([first, None, second])
    assert list(compat.registered_hooks(trainer)) == [first, second]


def test_losses_are_written(step):
    step.iter = 0
    with EventStorage() as storage:
        compat.write_losses(step, {"loss_cls": torch.tensor(1.0), "loss_mask": torch.tensor(2.0)}, data_time=0.5)
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["total_loss"] == 3.0 and latest["loss_mask"] == 2.0 and latest["data_time"] == 0.5


def test_pending_images():
    with EventStorage(3) as storage:
        storage.put_image("a/b", np.zeros((3, 4, 5), np.uint8))
        (image,) = compat.pending_images(storage)
        assert (image[0], image[1].shape, image[2]) == ("a/b", (3, 4, 5), 3)
        storage.clear_images()
        assert list(compat.pending_images(storage)) == []


@pytest.mark.parametrize(("annotations", "expected"), [(1, {"AP": 100.0}), (0, None)])
def test_coco_evaluator_with_ground_truth_in_memory(tmp_path, annotations, expected):
    MetadataCatalog.get("compat_test").thing_classes = ["a"]
    objects = [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 2, 10, 10], "area": 100, "iscrowd": 0}]
    ground_truth = {
        "images": [{"id": 7, "width": 20, "height": 20}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": objects[:annotations],
    }
    evaluator = object.__new__(COCOEvaluator)
    compat.init_coco_evaluator(
        evaluator, "compat_test", ground_truth, tasks=("bbox",), output_dir=str(tmp_path), max_dets_per_image=300
    )
    MetadataCatalog.remove("compat_test")
    assert compat.ground_truth_of(evaluator) is ground_truth
    instances = Instances((20, 20), pred_boxes=Boxes(torch.tensor([[2.0, 2.0, 12.0, 12.0]])), scores=torch.ones(1))
    instances.pred_classes = torch.ones(1, dtype=torch.int64)  # without a mapping, category ids are class numbers
    evaluator.reset()
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results == {} if expected is None else results["bbox"]["AP"] == pytest.approx(expected["AP"])
    assert (tmp_path / "coco_instances_results.json").is_file()


def test_process_groups_are_destroyed_and_forgotten():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    comm.create_local_process_group(1)
    assert comm.get_local_size() == 1
    compat.destroy_process_groups()
    assert not dist.is_initialized()
    assert not any(isinstance(value, dist.ProcessGroup) for value in vars(comm).values())
    assert comm.get_world_size() == 1 and comm.all_gather(SimpleNamespace(x=1))[0].x == 1
