import importlib
import importlib.metadata
import pickle

import pytest

import detectron2
from detectron2._names import NotInEngineError
from detectron2.layers import DeformConv
from detectron2.structures import Boxes, RotatedBoxes


def test_a_missing_class_can_be_imported_and_compared_but_not_used():
    assert not isinstance(Boxes([[0, 0, 1, 1]]), RotatedBoxes)
    with pytest.raises(NotInEngineError, match=r"structures\.RotatedBoxes.*no rotated boxes; install Detectron2"):
        RotatedBoxes([[0, 0, 1, 1, 45]])
    with pytest.raises(RuntimeError, match=r"RotatedBoxes\.cat"):
        RotatedBoxes.cat([])


def test_a_subclass_of_a_missing_class_raises_when_it_is_made():
    class Mine(DeformConv):
        def __init__(self, channels):
            super().__init__(channels, channels, 3)

    with pytest.raises(NotInEngineError, match=r"DeformConv: the embedded engine .* has no deformable convolutions"):
        Mine(8)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("structures.rotated_boxes", "RotatedBoxes"),
        ("config", "LazyConfig"),
        ("modeling.roi_heads.keypoint_head", "BaseKeypointRCNNHead"),
        ("export", "Caffe2Tracer"),
        ("export.api", "Caffe2Tracer"),
        ("projects.point_rend", "add_pointrend_config"),
        ("evaluation", "SemSegEvaluator"),
        ("modeling.meta_arch.retinanet", "RetinaNet"),
    ],
)
def test_missing_modules_and_names_can_be_imported(module, name):
    placeholder = getattr(importlib.import_module(f"detectron2.{module}"), name)
    with pytest.raises(NotInEngineError, match=name):
        placeholder()


def test_modules_that_repeat_their_package():
    from detectron2.data import transforms
    from detectron2.data.transforms.augmentation_impl import RandomFlip
    from detectron2.model_zoo.model_zoo import get_config

    assert RandomFlip is transforms.RandomFlip
    assert get_config is detectron2.model_zoo.get_config


@pytest.mark.parametrize("module", ["detectron2.structures", "detectron2.structures.rotated_boxes"])
def test_an_unknown_name_is_an_import_error(module):
    with pytest.raises(AttributeError, match="no attribute 'Bxes'"):
        importlib.import_module(module).Bxes  # noqa: B018


def test_a_function_with_the_name_of_its_module():
    importlib.import_module("detectron2.config.instantiate")
    from detectron2.config import instantiate

    with pytest.raises(NotInEngineError, match=r"config\.instantiate"):
        instantiate({})


def test_missing_names_hide_those_of_the_package():
    from detectron2.structures.rotated_boxes import pairwise_iou

    with pytest.raises(NotInEngineError, match="no rotated boxes"):
        pairwise_iou(Boxes([[0, 0, 1, 1]]), Boxes([[0, 0, 1, 1]]))


def test_an_unknown_module_is_an_import_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module("detectron2.no_such_module")


def test_modules_are_not_replaced():
    assert importlib.import_module("detectron2.structures.masks").__spec__.origin.endswith("masks.py")
    assert pickle.loads(pickle.dumps(Boxes([[0, 0, 1, 1]]))).tensor.tolist() == [[0, 0, 1, 1]]


def test_names_that_other_modules_import():
    from detectron2 import data, structures
    from detectron2.engine.defaults import build_detection_train_loader
    from detectron2.modeling.roi_heads.fast_rcnn import Instances

    assert build_detection_train_loader is data.build_detection_train_loader
    assert Instances is structures.Instances
    assert not hasattr(data, "Instances")


def test_programs_that_look_for_an_installed_package_find_it():
    assert importlib.metadata.version("detectron2") == detectron2.__version__
