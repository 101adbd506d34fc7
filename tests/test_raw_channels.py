"""Train, evaluate, predict, inspect and export a model of 16-bit images with one channel, and with five."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tifffile
import torch

from d2_maskrcnn import Predictor, UserError, export
from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.cli import predict
from d2_maskrcnn.cli.main import build_parser
from d2_maskrcnn.data.augmentation import build_train_mapper
from d2_maskrcnn.data.raw_images import channel_statistics
from d2_maskrcnn.engine import Trainer
from d2_maskrcnn.inspection import observe
from d2_maskrcnn.inspection.data import augmented_scenes
from d2_maskrcnn.model_loading import load_model
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

SIDE = 64


class Trained(NamedTuple):
    trainer: Trainer
    folder: Path
    channels: int


def write_images(folder: Path, channels: int) -> None:
    """Write 4 images with a bright square each: PNG and TIFF of one channel, TIFF of several."""
    generator = np.random.default_rng(channels)
    images, annotations = [], []
    for number in range(4):
        pixels = generator.integers(1000, 3000, (SIDE, SIDE, channels)).astype(np.uint16)
        x, y = (int(each) for each in generator.integers(4, 30, 2))
        pixels[y : y + 24, x : x + 24] += 40_000
        name = f"{number}.{'png' if channels == 1 and number % 2 else 'tif'}"
        if name.endswith("png"):
            assert cv2.imwrite(str(folder / name), pixels)
        else:
            planes = pixels.transpose(2, 0, 1) if number == 2 else pixels
            layout = "separate" if number == 2 else "contig"
            planes = pixels[:, :, 0] if channels == 1 else planes
            options = {"planarconfig": layout, "photometric": "minisblack"} if channels > 1 else {}
            tifffile.imwrite(folder / name, planes, **options)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        polygon = [x, y, x + 24, y, x + 24, y + 24, x, y + 24]
        box = {"bbox": [x, y, 24, 24], "area": 576, "iscrowd": 0, "segmentation": [polygon]}
        annotations.append({"id": number + 1, "image_id": number, "category_id": 1, **box})
    names = ("circle", "square", "triangle", "star")
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(content))


@pytest.fixture(scope="module", params=[1, 5])
def trained(request, tmp_path_factory, repo_dir) -> Trained:
    from d2_maskrcnn.config.loading import load_config
    from d2_maskrcnn.data import register_own_data
    from tools.fuzz.tiny import NARROW_MODEL

    folder, channels = tmp_path_factory.mktemp("raw"), request.param
    write_images(folder, channels)
    paths = [path for path in sorted(folder.iterdir()) if path.suffix != ".json"]
    mean, std = channel_statistics(paths)
    pairs = {
        **NARROW_MODEL,
        "INPUT.FORMAT": "RAW",
        "MODEL.PIXEL_MEAN": mean,
        "MODEL.PIXEL_STD": std,
        "INPUT.MIN_SIZE_TRAIN": "(48,)",
        "INPUT.MIN_SIZE_TEST": 96,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 3,
        "D2_MASKRCNN.EVALUATION.FIGURES": False,
        "D2_MASKRCNN.INSPECT.ENABLED": False,
        "DATALOADER.NUM_WORKERS": 0,
        "D2_MASKRCNN.DATA.TRAIN_JSON": folder / "data.json",
        "D2_MASKRCNN.DATA.TRAIN_IMAGES": folder,
        "D2_MASKRCNN.DATA.VAL_JSON": folder / "data.json",
        "D2_MASKRCNN.DATA.VAL_IMAGES": folder,
        "OUTPUT_DIR": folder / "out",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
        "TEST.DETECTIONS_PER_IMAGE": 5,
    }
    cfg = load_config(str(repo_dir / "configs/quickstart.yaml"), [str(x) for pair in pairs.items() for x in pair])
    register_own_data(cfg)
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return Trained(trainer, folder, channels)


@pytest.fixture(scope="module")
def weights(trained) -> str:
    return str(trained.folder / "out" / "model_final.pth")


def test_the_first_convolution_takes_the_channels(trained):
    assert trained.trainer.model.backbone.bottom_up.stem.conv1.weight.shape[1] == trained.channels
    losses = trained.trainer.storage.histories()["total_loss"].values()
    assert len(losses) == 3 and all(np.isfinite(value) for value, _ in losses)


def test_evaluation_and_prediction_see_the_same_pixels(trained, weights):
    predictor = Predictor(weights, device="cpu", threshold=0.1)
    record = DatasetCatalog.get(trained.trainer.cfg.DATASETS.TEST[0])[0]
    sample = next(iter(trained.trainer.build_test_loader(trained.trainer.cfg, trained.trainer.cfg.DATASETS.TEST[0])))[0]
    assert sample["image"].shape == (trained.channels, 96, 96) and sample["image"].dtype == torch.float32
    assert sample["image"].max() > 30_000
    expected = predictor.model([sample])[0]["instances"]
    results = predictor(record["file_name"])
    np.testing.assert_allclose(results.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(results.boxes, expected.pred_boxes.tensor, atol=0.02)
    array = read_array(record["file_name"])
    np.testing.assert_allclose(predictor(array).scores, results.scores, atol=1e-5)
    tensor = torch.from_numpy(array.astype(np.float32).transpose(2, 0, 1))
    np.testing.assert_allclose(predictor(tensor).scores, results.scores, atol=1e-5)
    assert results.plot().shape == (SIDE, SIDE, 3) and results.image.dtype == np.uint8
    assert len(list(predictor(str(trained.folder)))) == 4


def read_array(path: str) -> np.ndarray:
    pixels = tifffile.imread(path)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def test_16_bits_are_not_reduced_to_8(trained, weights):
    model = Predictor(weights, device="cpu").model
    image = np.full((32, 32, trained.channels), 2000, np.uint16)
    finer = image.copy()
    finer[::2] += 100  # 8 bits would be 7 and 8 at most
    inputs = [{"image": torch.from_numpy(each.astype(np.float32).transpose(2, 0, 1))} for each in (image, finer)]
    first, second = model.preprocess_image(inputs).tensor
    assert len(first[0].unique()) == 1 and len(second[0].unique()) == 2


@pytest.mark.parametrize("trained", [5], indirect=True)
def test_evaluation_with_augmentation_and_by_tiles(trained, weights, tmp_path):
    from d2_maskrcnn.engine.run import evaluate

    data = ["DATASETS.TEST", trained.trainer.cfg.DATASETS.TEST]
    for options in (["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,)], ["D2_MASKRCNN.INFERENCE.TILE", 48]):
        metrics = evaluate(weights, output=tmp_path / "out", overrides=[*data, "MODEL.DEVICE", "cpu", *options])
        assert "segm/AP" in metrics


def test_command(trained, weights, tmp_path, caplog):
    for options in ([], ["--tile", "48"]):
        flags = ["--weights", weights, "--confidence-threshold", "0.1", "--device", "cpu"]
        outputs = ["--output", str(tmp_path / "drawn"), "--save-json", str(tmp_path / "r.json"), "--overwrite"]
        predict.run(build_parser(predict, "predict").parse_args([str(trained.folder), *flags, *outputs, *options]))
        assert len(list((tmp_path / "drawn").iterdir())) == 4
        assert json.loads((tmp_path / "r.json").read_text())
    with caplog.at_level(logging.ERROR), pytest.raises(UserError):
        wrong = tmp_path / "wrong.png"
        cv2.imwrite(str(wrong), np.zeros((20, 20, 3), np.uint8))
        predict.run(build_parser(predict, "predict").parse_args([str(wrong), *flags, *outputs]))
    assert f"wrong.png has 3 channels, the model takes {trained.channels}" in caplog.text
    with pytest.raises(UserError, match=f"Videos have 8-bit colors, this model takes images of {trained.channels} "):
        arguments = ["a.mp4", *flags, *outputs]
        predict.run(build_parser(predict, "predict").parse_args(arguments))


def test_a_wrong_image_in_a_training_gets_one_line(trained):
    dataset = trained.trainer.cfg.DATASETS.TRAIN[0]
    records = [dict(record) for record in DatasetCatalog.get(dataset)]
    cv2.imwrite(str(trained.folder / "wrong.png"), np.zeros((SIDE, SIDE, 3), np.uint8))
    try:
        records[0]["file_name"] = str(trained.folder / "wrong.png")
        with pytest.raises(UserError, match=f"wrong.png has 3 channels, the model takes {trained.channels}"):
            build_train_mapper(trained.trainer.cfg)(records[0])
    finally:
        (trained.folder / "wrong.png").unlink()


def test_inspection(trained, weights, tmp_path):
    cfg = trained.trainer.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    model, names = load_model(cfg, "cpu")
    record = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    observation = observe(cfg, model, record, names)
    assert observation.original.shape == (SIDE, SIDE, 3) and observation.image.shape == (96, 96, 3)
    assert observation.original.dtype == observation.image.dtype == np.uint8
    assert len(augmented_scenes(cfg, cfg.DATASETS.TRAIN[0], count=2)) == 2


@pytest.mark.parametrize("trained", [5], indirect=True)
def test_export(trained, weights, tmp_path):
    predictor = Predictor(weights, device="cpu", threshold=0.1)
    bottom_up = predictor.model.backbone.bottom_up
    for name in bottom_up.stage_names:  # one block per stage, so that it is exported faster
        bottom_up.add_module(name, bottom_up.get_submodule(name)[:1])
    path = export(predictor, "torch", tmp_path / "model.pt2")
    expected = predictor(str(trained.folder / "0.tif"))
    results = Predictor(path, threshold=0.1)(str(trained.folder / "0.tif"))
    assert len(results) == len(expected) > 0
    np.testing.assert_allclose(results.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(results.boxes, expected.boxes, atol=0.05)


def test_weights_of_color_images_are_adapted(trained, tmp_path, tiny_cfg, caplog):
    color = build_model(tiny_cfg())
    MaskRCNNCheckpointer(color, str(tmp_path)).save("color")
    model = build_model(trained.trainer.cfg)
    checkpointer = MaskRCNNCheckpointer(model)
    with caplog.at_level(logging.INFO):
        checkpointer.load(str(tmp_path / "color.pth"))
    assert f"3 colors adapted to {trained.channels} channels" in caplog.text
    before, after = (each.backbone.bottom_up.stem.conv1.weight for each in (color, model))
    gray = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(
        torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), before),
        torch.nn.functional.conv2d(gray.expand(-1, trained.channels, -1, -1), after),
    )
    with pytest.raises(UserError, match=r"cannot be evaluated: .* train a model from these weights first"):
        checkpointer.check_evaluable()
    MaskRCNNCheckpointer(model, str(tmp_path)).save("raw")
    with pytest.raises(UserError, match=f"images of {trained.channels} channels, but MODEL.PIXEL_MEAN has 3 values"):
        MaskRCNNCheckpointer(color).load(str(tmp_path / "raw.pth"))


@pytest.mark.parametrize("trained", [5], indirect=True)
def test_server(trained, weights):
    from d2_maskrcnn.serve import Settings, create_app
    from tests.serve.conftest import serve

    predictor = Predictor(weights, device="cpu", threshold=0.1)
    content = (trained.folder / "0.tif").read_bytes()
    with serve(create_app(predictor, Settings())) as client:
        answer = client.post("/predict?threshold=0.1", files={"file": ("0.tif", content)}).json()
        drawn = client.post("/predict", files={"file": ("0.tif", content)}, headers={"Accept": "image/png"})
    assert len(answer["annotations"]) == len(predictor(trained.folder / "0.tif")) > 0
    assert drawn.content[1:4] == b"PNG"
