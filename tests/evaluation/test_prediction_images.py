import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn.evaluation.prediction_images import draw_predictions, unique_names
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances


@pytest.fixture
def register(request):
    """``register(records)``: the name of a dataset that is removed after the test."""

    def add(records):
        name = f"test_{len(added)}"
        DatasetCatalog.register(name, lambda: records)
        added.append(name)
        return name

    added = []
    yield add
    for name in added:
        DatasetCatalog.remove(name)


def test_images_show_the_ground_truth_beside_predictions(tiny_cfg, tmp_path):
    cfg = tiny_cfg()
    model = build_model(cfg).train()
    name = cfg.DATASETS.TEST[0]
    written = draw_predictions(cfg, model, name, tmp_path / "images", count=2, threshold=0.0)
    assert model.training
    assert [path.name for path in written] == ["000001.jpg", "000002.jpg"]
    for path, record in zip(written, DatasetCatalog.get(name)[:2], strict=True):
        with Image.open(path) as file:
            shown = np.array(file)
        with Image.open(record["file_name"]) as file:
            plain = np.array(file.convert("RGB").resize((384, 384), Image.Resampling.NEAREST))
        assert shown.shape == (384, 768, 3)
        left = np.abs(shown[:, :384].astype(int) - plain).max(axis=2) > 60
        x0, y0, w, h = (int(v * 6) for v in record["annotations"][0]["bbox"])
        assert left[y0 : y0 + h, x0 : x0 + w].any()  # something is drawn where the first annotation lies


class Detector(torch.nn.Module):
    """A model that detects given boxes."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes = torch.tensor(boxes, dtype=torch.float32)

    def forward(self, batch):
        size = (batch[0]["height"], batch[0]["width"])
        scores, classes = torch.full((len(self.boxes),), 0.9), torch.zeros(len(self.boxes), dtype=torch.int64)
        return [{"instances": Instances(size, pred_boxes=Boxes(self.boxes), scores=scores, pred_classes=classes)}]


def test_an_object_and_its_prediction_have_the_same_color(tiny_cfg, register, tmp_path):
    """The predictions come in another order than the objects; a false positive gets another color."""
    Image.new("RGB", (400, 400)).save(tmp_path / "a.png")
    boxes = [[20, 100, 100, 180], [250, 250, 330, 330]]
    objects = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for box in boxes]
    record = {"file_name": str(tmp_path / "a.png"), "height": 400, "width": 400, "annotations": objects}
    detector = Detector([boxes[1], boxes[0], [250, 50, 330, 130]])
    (path,) = draw_predictions(tiny_cfg(), detector, register([record]), tmp_path)
    with Image.open(path) as file:
        image = np.asarray(file).astype(int)
    left, right = image[:, :400], image[:, 400:]
    for x, y in ((20, 140), (250, 290)):  # on the left edges of the boxes
        assert np.abs(left[y, x] - right[y, x]).max() < 40 and left[y, x].max() > 100
    edges = [right[y, 250] for y in range(60, 120)]
    assert max(edge.max() for edge in edges) > 100 > min(edge.max() for edge in edges)  # dashed


def test_images_of_equal_names_do_not_overwrite_each_other(tiny_cfg, register, tmp_path):
    files = [tmp_path / "data" / folder / "img" / name for folder in "ab" for name in ("x.png", "x.jpg", "y.png")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(file)
    name = register([{"file_name": str(f), "height": 64, "width": 64, "image_id": i} for i, f in enumerate(files)])
    cfg = tiny_cfg()
    written = draw_predictions(cfg, build_model(cfg), name, tmp_path / "images")
    assert len(written) == len({str(path).lower() for path in written}) == 6 and all(p.is_file() for p in written)


@pytest.mark.parametrize(("size", "expected"), [((6000, 64), (12000, 64)), ((34_000, 64), (34_000, 128))])
def test_strips_are_not_enlarged_beyond_what_jpeg_can_store(tiny_cfg, register, tmp_path, size, expected):
    Image.new("RGB", size).save(tmp_path / "strip.png")
    record = {"file_name": str(tmp_path / "strip.png"), "width": size[0], "height": size[1], "image_id": 1}
    cfg = tiny_cfg()
    (written,) = draw_predictions(cfg, build_model(cfg), register([record]), tmp_path / "images")
    with Image.open(written) as file:
        assert file.size == expected


def test_image_that_cannot_be_drawn_is_a_warning(tiny_cfg, register, tmp_path, caplog):
    for name, size in (("long.png", (66_000, 8)), ("good.png", (64, 64))):
        Image.new("RGB", size).save(tmp_path / name)
    sizes = {"long.png": (66_000, 8), "good.png": (64, 64), "missing.png": (64, 64)}
    records = [
        {"file_name": str(tmp_path / name), "width": width, "height": height, "image_id": name}
        for name, (width, height) in sizes.items()
    ]
    cfg = tiny_cfg()
    written = draw_predictions(cfg, build_model(cfg), register(records), tmp_path / "images")
    assert [path.name for path in written] == ["good.jpg"]
    for name in ("long.png", "missing.png"):
        assert f"{tmp_path / name} failed" in caplog.text


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ([], []),
        (["/d/a.png", "/d/b.png"], ["a.png", "b.png"]),
        (["/a/img/x", "/b/img/x"], ["a_img_x", "b_img_x"]),
        (["a/x", "b/X"], ["a_x", "b_X"]),
        (["a_b/x", "a/b_x", "c/x"], ["0000_x", "0001_b_x", "0002_x"]),
    ],
)
def test_unique_names(files, names):
    assert unique_names(files) == names
    assert len({name.lower() for name in names}) == len(files)
