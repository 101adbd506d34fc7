"""Predictor and Results: every kind of input, the same detections everywhere, and the conversions."""

import json
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

import d2_maskrcnn
from d2_maskrcnn import Predictor, UserError, checkpoint, model_loading
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.modeling.precision import has_native_bfloat16
from d2_maskrcnn.predictor import plan_batches
from d2_maskrcnn.results import Results
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.weights.readers import read_weights
from detectron2.modeling import build_model
from tests.video.conftest import CLASS_NAMES, MODEL_OPTS, frame_image


@pytest.fixture(scope="module")
def weights(tmp_path_factory, repo_dir) -> Path:
    """A checkpoint of a tiny random model that stores its config."""
    options = [str(x) for pair in MODEL_OPTS.items() for x in pair]
    cfg = load_config(str(repo_dir / "configs" / "quickstart.yaml"), options)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("predictor")
    model = build_model(cfg)
    MaskRCNNCheckpointer(model, str(folder), class_names=CLASS_NAMES, config=cfg.dump()).save("tiny")
    MaskRCNNCheckpointer(model, str(folder), class_names=CLASS_NAMES).save("bare")
    return folder / "tiny.pth"


@pytest.fixture(scope="module")
def predictor(weights) -> Predictor:
    return Predictor(weights, threshold=0.1, device="cpu")


def test_repr_names_classes_device_and_type(predictor):
    assert repr(predictor) == f"Predictor({', '.join(CLASS_NAMES)}; cpu, float32)"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return frame_image(3, (100, 140))


def test_public_names():
    for name in d2_maskrcnn.__all__:
        assert getattr(d2_maskrcnn, name) is not None
    with pytest.raises(AttributeError, match="Predictr"):
        d2_maskrcnn.Predictr  # noqa: B018


def same(a: Results, b: Results) -> bool:
    return np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and np.array_equal(a.masks, b.masks)


def test_every_kind_of_image_gives_the_same(predictor, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = predictor(str(tmp_path / "a.png"))
    assert len(expected) > 0 and expected.image_size == (100, 140) and expected.path.endswith("a.png")
    others = [
        predictor(tmp_path / "a.png"),
        predictor(image),
        predictor(image[:, :, ::-1], bgr=True),
        predictor(Image.fromarray(image)),
        predictor(torch.from_numpy(image.transpose(2, 0, 1).copy())),
        next(iter(predictor([image]))),
    ]
    assert all(same(expected, other) for other in others)


def test_folders_and_globs_are_iterated(predictor, image, tmp_path, caplog):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for source in (tmp_path, str(tmp_path / "*"), str(tmp_path / "*.[pj]*g")):
        assert [Path(r.path).name for r in predictor(source, batch_size=2)] == ["a.jpg", "b.png"]
    assert "broken.png" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        predictor(tmp_path / "empty")


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_batches_give_the_same_as_single_images(predictor, batch_size):
    sizes = [(100, 140), (140, 100), (90, 130), (64, 64), (100, 141), (139, 100), (30, 200)]
    images = [frame_image(index, size) for index, size in enumerate(sizes)]
    for image, results in zip(images, predictor(iter(images), batch_size=batch_size), strict=True):
        alone = predictor(image)
        assert results.image_size == image.shape[:2] and len(results) == len(alone) > 0
        np.testing.assert_allclose(results.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(results.boxes, alone.boxes, atol=1e-3)
        assert (results.masks != alone.masks).mean() < 1e-4
    assert list(predictor([])) == []


def test_batches_are_full_and_of_one_padded_size():
    batches = list(plan_batches([(60, 90), (64, 64), (64, 96), (50, 96), (33, 64)], 32, 2, 2 * 64 * 96))
    assert batches == [[0, 2], [3], [1, 4]]
    assert list(plan_batches([(64, 64)] * 3, 32, 9, 64 * 64)) == [[0], [1], [2]]  # larger than the budget: one by one
    assert list(plan_batches([], 32, 1, 1)) == []


def test_unreadable_files_of_a_list_are_skipped(predictor, image, tmp_path, caplog):
    Image.fromarray(image).save(tmp_path / "a.png")
    results = list(predictor([tmp_path / "missing.png", tmp_path / "a.png", image]))
    assert [Path(each.path).name for each in results] == ["a.png", ""] and "missing.png: no such file" in caplog.text
    with pytest.raises(UserError, match="Expected an image, got int"):
        list(predictor([image, 3]))
    for batch_size in (0, "2", 1.5):
        with pytest.raises(UserError, match=f"batch_size {batch_size!r}: expected an integer"):
            predictor([image], batch_size=batch_size)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "got NoneType"),
        (np.zeros((4, 4, 3)), "uint8 image, got ndarray of shape .* float64"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "with pixels"),
        ("missing.jpg", "no such file"),
        ("", "name of the image is empty"),
        (b"abc", "got bytes"),
    ],
)
def test_bad_images(predictor, source, message):
    with pytest.raises(UserError, match=message):
        predictor(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float16"}, "is for GPUs"),
        ({"classes": ["circl"]}, "Did you mean circle"),
        ({"classes": [9]}, "no class '9'"),
        ({"classes": []}, "classes is empty"),
        ({"classes": "circle"}, r"expected a list of names or numbers, such as \['circle'\]"),
        ({"classes": 2}, r"such as \[2\]"),
        ({"threshold": 2}, "from 0 to 1"),
        ({"threshold": float("nan")}, "from 0 to 1"),
        ({"threshold": "0.5"}, "threshold '0.5': expected a number"),
        ({"tile": "512"}, "tile '512': expected a number"),
        ({"tile": 64, "overlap": [0.1]}, "overlap .*expected a number"),
        ({"precision": "int8"}, "float32"),
        ({"overrides": ["MODEL.NO", "1"]}, r"MODEL\.NO"),
        ({"config": "missing.yaml"}, "file not found"),
    ],
)
def test_bad_arguments(weights, arguments, message):
    with pytest.raises(UserError, match=message):
        Predictor(weights, **arguments)


def test_the_name_of_a_config_in_place_of_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mrcnn_R101 is a config, not a weight file"):
        Predictor("mrcnn_R101")


@pytest.mark.parametrize("model", ["", b"abc", None])
def test_no_model(model):
    with pytest.raises(UserError, match="expected a checkpoint, an exported file, or a config"):
        Predictor(model)


def test_the_weights_are_read_once(weights, monkeypatch):
    read = []
    for module in (checkpoint, model_loading):
        monkeypatch.setattr(module, "read_weights", lambda *a, **k: read.append(a) or read_weights(*a, **k))
    Predictor(weights)
    assert len(read) == 1


def test_precision_of_the_config_and_of_the_argument(weights, image):
    chosen = Predictor(weights, overrides=["D2_MASKRCNN.INFERENCE.PRECISION", "auto"], device="cpu")
    assert chosen.dtype == (torch.bfloat16 if has_native_bfloat16() else torch.float32)
    assert Predictor(chosen.cfg, precision="float32").dtype == torch.float32
    assert chosen(image).scores.dtype == np.float32


def test_weights_without_a_config(weights, repo_dir, tmp_path):
    bare, blank = weights.with_name("bare.pth"), tmp_path / "blank.pth"
    torch.save({"model": {"x": torch.zeros(1)}, "metadata": {"config": " "}}, blank)
    for path in (bare, blank):
        with pytest.raises(UserError, match="stores no config"):
            Predictor(path)
    options = [x for pair in MODEL_OPTS.items() for x in pair]
    assert (
        Predictor(bare, config=repo_dir / "configs" / "quickstart.yaml", overrides=options).class_names == CLASS_NAMES
    )


def test_classes_are_kept(weights, predictor, image):
    wanted = predictor(image).names[0]
    chosen = Predictor(weights, threshold=0.1, classes=[wanted.upper()])(image)
    assert set(chosen.names) == {wanted} and len(chosen) == predictor(image).names.count(wanted)


def test_classes_with_the_names_of_others():
    names = ["Cell", "cell", "1", "cell", "0"]
    for classes, numbers in ((["cell"], [1, 3]), (["CELL"], [0, 1, 3]), (["1", 1], [2, 1]), (iter([0]), [0])):
        assert model_loading.class_indices(classes, names, 5).tolist() == numbers


def test_control_characters_of_names_and_paths_are_escaped(image):
    results = Results(image, Detections.empty((100, 140)), ["a"], "x\x1b[31m\n.png")
    assert repr(results) == "Results(x\\x1b[31m\\n.png, 140x100: no detections)"


def test_threads_share_a_predictor(predictor, image):
    expected, results = predictor(image), []
    threads = [threading.Thread(target=lambda: results.append(predictor(image))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(same(expected, each) for each in results)


def test_no_detections(image):
    results = Results(image, Detections.empty((100, 140)), CLASS_NAMES)
    assert len(results) == 0 and list(results) == [] and results.names == [] and results.to_coco(1) == []
    assert results.masks.shape == (0, 100, 140) and "no detections" in repr(results)
    assert np.array_equal(results.plot(), image) and len(results.to_instances()) == 0


def test_selecting(predictor, image):
    results = predictor(image)
    assert len(results[0]) == 1 and np.array_equal(results[-1].boxes[0], results.boxes[-1])
    assert len(results[results.scores >= results.scores[0]]) >= 1 and len(results[:2]) == 2
    assert [len(each) for each in results] == [1] * len(results)
    with pytest.raises(IndexError):
        results[len(results)]
    nothing = results[:0]
    for index in ([], (), np.array([])):
        assert len(results[index]) == len(nothing[index]) == 0
    assert len(nothing[nothing.scores > 0.5]) == 0
    for first in (np.array(0), torch.tensor(0), np.int64(0), [0]):
        assert np.array_equal(results[first].masks, results.masks[:1])
    assert np.array_equal(results.detections.masks[np.int64(0)].image(0), results.masks[0])
    for index in ("a", 1.0, None, np.array([[0, 1]])):
        with pytest.raises(IndexError, match="expected an integer"):
            results[index]


def test_conversions(predictor, image, tmp_path):
    results = predictor(image)
    records = results.to_coco(7)
    for record, mask, box, name in zip(records, results.masks, results.boxes, results.names, strict=True):
        assert record["image_id"] == 7 and record["category"] == name
        assert record["category_id"] == CLASS_NAMES.index(name) + 1
        assert (
            np.array_equal(mask_util.decode(record["segmentation"]).astype(bool), mask) and record["area"] == mask.sum()
        )
        np.testing.assert_allclose(record["bbox"][:2], box[:2], atol=0.01)
    described = json.loads(results.to_json())
    assert (described["width"], described["height"]) == (140, 100) and len(described["detections"]) == len(results)
    assert "image_id" not in described["detections"][0]
    instances = results.to_instances()
    assert instances.image_size == (100, 140) and np.array_equal(instances.pred_masks.numpy(), results.masks)
    drawn = results.plot()
    assert drawn.shape == image.shape and (drawn != image).any()
    assert np.array_equal(cv2.imread(str(results.save(tmp_path / "new" / "a.png")))[:, :, ::-1], drawn)
    assert Image.open(tmp_path / "new" / "a.png").size == (140, 100)
    assert results._repr_png_().startswith(b"\x89PNG") and "140x100" in repr(results)
    for name, message in (("a.xyz", "image format"), ("a\0.png", "NUL"), ("a" * 300 + ".png", "too long")):
        with pytest.raises(UserError, match=message):
            results.save(tmp_path / name)
    with pytest.raises(UserError, match="save None"):
        results.save(None)
    assert results.save(tmp_path / ("a" * 251 + ".png")).is_file()  # the longest name
    assert json.dumps(results.to_coco(np.int64(7))) == json.dumps(records)


def test_pandas_and_supervision(predictor, image):
    results = predictor(image)
    table = pytest.importorskip("pandas") and results.to_pandas()
    assert table["name"].tolist() == results.names and table["area"].tolist() == results.masks.sum((1, 2)).tolist()
    detections = pytest.importorskip("supervision") and results.to_supervision()
    assert np.array_equal(detections.mask, results.masks) and detections["class_name"].tolist() == results.names
    assert len(results[:0].to_pandas()) == len(results[:0].to_supervision()) == 0


def test_missing_packages_are_named(predictor, image, monkeypatch):
    for name in ("pandas", "supervision"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"pip install \"d2_maskrcnn\[{name}\]"):
            getattr(predictor(image), f"to_{name}")()
