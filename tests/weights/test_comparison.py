import numpy as np
import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.comparison import MAX_GROUPS, check_same_model, class_change, compare
from d2_maskrcnn.weights.names import convert_names, group_names

PREFIX = "backbone.bottom_up."


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([], []),
        (["a"], ["a"]),
        (["a", "a"], ["a"]),
        (["a.weight", "a.bias"], ["a.{bias,weight}"]),
        (["b", "a.b", "a.b.c"], ["a.b", "a.b.c", "b"]),
        ([f"{PREFIX}res4.{b}.conv{i}.w" for b in range(23) for i in (1, 2)], [f"{PREFIX}res4.*.conv*.w"]),
        (["conv.w", "conv1.w", "conv2.w"], ["conv*.w", "conv.w"]),
    ],
)
def test_group_names(names, groups):
    assert sorted(group_names(names)) == sorted(group_names(reversed(names))) == sorted(groups)


@pytest.fixture(scope="module")
def mask_rcnn_shapes(resnet_shapes):
    """``mask_rcnn_shapes(depth, classes)``: a narrow Mask R-CNN's tensors in Detectron2's names."""

    def shapes(depth=50, classes=80, width=8):
        found = {PREFIX + name: shape for name, shape in resnet_shapes(depth, width).items()}
        for level in (2, 3, 4, 5):
            found[f"backbone.fpn_lateral{level}.weight"] = (16, width * 2**level, 1, 1)
            found[f"backbone.fpn_output{level}.weight"] = (16, 16, 3, 3)
        heads = {
            "proposal_generator.rpn_head.conv": (16, 16, 3, 3),
            "roi_heads.box_head.fc1": (32, 784),
            "roi_heads.box_predictor.cls_score": (classes + 1, 32),
            "roi_heads.box_predictor.bbox_pred": (4 * classes, 32),
            "roi_heads.mask_head.mask_fcn1": (16, 16, 3, 3),
            "roi_heads.mask_head.predictor": (classes, 16, 1, 1),
        }
        for name, shape in heads.items():
            found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]
        return found

    return shapes


def check(file_shapes, model_shapes, path="file.pth"):
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in file_shapes.items()}
    converted = convert_names(state, model_shapes)
    report = compare(path, converted, model_shapes)
    check_same_model(report, converted, model_shapes)
    return report


def test_the_same_model_gives_an_empty_report(mask_rcnn_shapes):
    report = check(mask_rcnn_shapes(), mask_rcnn_shapes())
    assert report.is_complete and not report.unexpected and len(report.loaded) == len(mask_rcnn_shapes())
    total = len(mask_rcnn_shapes())
    assert str(report) == f"file.pth: {total} of the model's {total} tensors loaded"


def test_constants_of_older_files_are_not_mentioned(mask_rcnn_shapes):
    shapes = mask_rcnn_shapes()
    old = {**shapes, "pixel_mean": (3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": (3, 4)}
    model = {**shapes, PREFIX + "stem.conv1.norm.num_batches_tracked": ()}
    report = check(old, model)
    assert report.is_complete and not report.unexpected


def test_another_number_of_classes_is_for_fine_tuning(mask_rcnn_shapes):
    report = check(mask_rcnn_shapes(classes=80), mask_rcnn_shapes(classes=3))
    assert class_change(report) == (80, 3)
    assert {wrong.name for wrong in report.wrong_shape} == {
        f"roi_heads.{name}.{part}"
        for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
        for part in ("weight", "bias")
    }
    assert "roi_heads.box_predictor.cls_score.weight: (81, 32) in the file, (4, 32) in the model" in str(report)
    assert class_change(check(mask_rcnn_shapes(), mask_rcnn_shapes())) is None


def test_the_report_of_a_backbone_is_short(msra_blobs, mask_rcnn_shapes):
    shapes = mask_rcnn_shapes(101)
    converted = convert_names(msra_blobs(101)[0], shapes)
    report = compare("R-101.pkl", converted, shapes)
    check_same_model(report, converted, shapes)
    assert report.is_backbone_only and not report.is_complete and not report.unexpected and not report.wrong_shape
    text = str(report)
    assert text.startswith(
        "R-101.pkl: 520 of the model's 540 tensors loaded (names of caffe2, with the prefix 'backbone.bottom_up.')"
    )
    assert (
        "backbone.fpn_lateral*.weight, backbone.fpn_output*.weight" in text
        and len(text.splitlines()) == 2
        and len(text) < 700
    )


def test_many_groups_are_abbreviated(mask_rcnn_shapes):
    shapes = mask_rcnn_shapes()
    odd = {f"odd{'.x' * depth}.w": (1,) for depth in range(24)}  # of different lengths, so no two share a group
    report = check({**shapes, **odd}, shapes)
    assert len(report.unexpected) == 24
    assert f"and {24 - MAX_GROUPS} more" in str(report)


@pytest.mark.parametrize(("in_file", "in_model"), [(50, 101), (101, 50), (152, 101)])
def test_another_depth(mask_rcnn_shapes, in_file, in_model):
    expected = rf"contains a ResNet-{in_file} \(.* blocks\), but the model is a ResNet-{in_model} \(.*DEPTH {in_file}"
    with pytest.raises(UserError, match=expected):
        check(mask_rcnn_shapes(in_file), mask_rcnn_shapes(in_model))


def test_another_width(mask_rcnn_shapes):
    with pytest.raises(
        UserError, match=r"another model: the names fit, but .*\(16, 3, 7, 7\) in the file and \(8, 3, 7, 7\)"
    ):
        check(mask_rcnn_shapes(width=16), mask_rcnn_shapes(width=8))


def test_another_kind_of_resnet(mask_rcnn_shapes):
    resnext = {
        name: (shape[0], shape[1] // 4, *shape[2:]) if ".conv2.weight" in name else shape
        for name, shape in mask_rcnn_shapes().items()
    }
    with pytest.raises(UserError, match=r"another ResNet's weights: .*conv2\.weight is .*NUM_GROUPS"):
        check(resnext, mask_rcnn_shapes())


def test_a_stem_for_other_channels_is_allowed(mask_rcnn_shapes):
    four = {**mask_rcnn_shapes(), PREFIX + "stem.conv1.weight": (8, 4, 7, 7)}
    report = check(mask_rcnn_shapes(), four)
    assert [wrong.name for wrong in report.wrong_shape] == [PREFIX + "stem.conv1.weight"]


@pytest.mark.parametrize(
    "names", [["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"], ["stem.conv1.weight"], ["w"] + ["x.bias"] * 3]
)
def test_a_file_of_another_model_is_refused(mask_rcnn_shapes, names):
    with pytest.raises(UserError, match="another model") as info:
        check(dict.fromkeys(names, (5, 5, 5)), mask_rcnn_shapes())
    assert "file.pth" in str(info.value) and "\n" not in str(info.value)


def test_the_names_of_both_sides_are_shown(mask_rcnn_shapes):
    with pytest.raises(UserError, match=r"its names are such as blocks\.0\.w, .*, the model's backbone"):
        check({f"blocks.{i}.w": (1,) for i in range(30)}, mask_rcnn_shapes())
