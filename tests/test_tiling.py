"""Prediction by tiles: objects at seams, large objects, memory, and the same results as without tiles."""

import json
import tracemalloc

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from d2_maskrcnn import Predictor, UserError, example, image_files
from d2_maskrcnn.cli import predict
from d2_maskrcnn.cli.main import build_parser
from d2_maskrcnn.data import large_images, windowed_images
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import CropMasks
from d2_maskrcnn.structures.masks import Window, coco_iou
from d2_maskrcnn.tiling import Tiling, detect_by_tiles

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def draw(size, shapes) -> np.ndarray:
    """Draw (class, x0, y0, x1, y1) ellipses on black."""
    image = np.zeros((*size, 3), np.uint8)
    for label, x0, y0, x1, y1 in shapes:
        center, axes = ((x0 + x1) // 2, (y0 + y1) // 2), ((x1 - x0) // 2, (y1 - y0) // 2)
        cv2.ellipse(image, center, axes, 0, 0, 360, COLORS[label], -1)
    return image


def find_colors(image: np.ndarray) -> Detections:
    """Detect the connected regions of each color in an image, the largest with the highest score."""
    boxes, labels, windows, bitmaps = [], [], [], []
    for label, color in enumerate(COLORS):
        count, regions, stats, _ = cv2.connectedComponentsWithStats((image == color).all(2).astype(np.uint8))
        for index in range(1, count):
            x, y, w, h = (int(value) for value in stats[index][:4])
            boxes.append([x, y, x + w, y + h])
            labels.append(label)
            windows.append(Window(x, y, x + w, y + h))
            bitmaps.append((regions[y : y + h, x : x + w] == index).astype(np.uint8))
    scores = np.array([0.5 + bitmap.size / 1e7 for bitmap in bitmaps], np.float32)
    order = np.argsort(-scores, kind="stable")
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4), scores, np.array(labels, np.int64), image.shape[:2],
        CropMasks(windows, bitmaps, image.shape[:2]),
    )  # fmt: skip
    return found[order]


def detect(images) -> list[Detections]:
    return [find_colors(image) for image in images]


def assert_same_objects(actual: Detections, expected: Detections) -> None:
    """Compare two sets of detections in any order: classes and masks are equal."""
    one, other = (
        sorted((int(d.classes[i]), d.masks.rle(i)["counts"]) for i in range(len(d))) for d in (actual, expected)
    )
    assert one == other


SCATTERED = [(i % 3, 10 + 37 * i % 250, 15 + 61 * i % 200, 30 + 37 * i % 250, 32 + 61 * i % 200) for i in range(12)]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5])
@pytest.mark.parametrize(
    "shapes",
    [
        [],
        SCATTERED,  # some inside of one tile, some cut
        [(0, 20, 100, 280, 130)],  # through three tiles
        [(1, 10, 10, 290, 230)],  # through all tiles
        [(0, 60, 60, 140, 140), (1, 130, 60, 210, 140), (0, 215, 60, 290, 140)],  # side by side
    ],
)
def test_tiles_show_what_the_whole_image_shows(shapes, overlap, whole):
    image = draw((240, 300), shapes)
    expected = find_colors(image)
    merged = detect_by_tiles(image, Tiling(96, overlap, whole, batch_size=3), detect)
    assert_same_objects(merged, expected)
    assert merged.image_size == (240, 300) and (np.diff(merged.scores) <= 0).all()
    np.testing.assert_allclose(np.sort(merged.boxes, axis=0), np.sort(expected.boxes, axis=0), atol=1)


def test_objects_of_two_classes_are_not_joined():
    image = draw((100, 200), [(0, 60, 20, 110, 80)])
    image[:, 96:][(image[:, 96:] == COLORS[0]).all(2)] = COLORS[1]  # the right part is of another class
    merged = detect_by_tiles(image, Tiling(96, 0.2), detect)
    assert sorted(merged.classes) == [0, 1]


def test_an_object_that_no_tile_shows_comes_from_the_whole_image():
    image = draw((240, 300), [(2, 10, 10, 290, 230)])

    def misses_cut_objects(images):
        full = [find_colors(image) for image in images]
        return [each if each.image_size == (240, 300) else each[:0] for each in full]

    assert len(detect_by_tiles(image, Tiling(96, 0.2, whole=False), misses_cut_objects)) == 0
    assert_same_objects(detect_by_tiles(image, Tiling(96, 0.2), misses_cut_objects), find_colors(image))


def test_small_objects_are_kept_inside_a_large_false_one():
    image = draw((240, 300), [(0, x, y, x + 20, y + 20) for x in range(5, 275, 22) for y in range(5, 215, 22)])

    def merges_them_all(images):
        results = detect(images)
        if results[0].image_size == (240, 300):
            mask = CropMasks([Window(0, 0, 300, 240)], [np.ones((240, 300), np.uint8)], (240, 300))
            box = np.array([[0, 0, 300, 240]], np.float32)
            return [Detections(box, np.array([0.9], np.float32), np.array([0]), (240, 300), mask)]
        return results

    assert_same_objects(detect_by_tiles(image, Tiling(96, 0.3), merges_them_all), find_colors(image))


def test_detections_without_masks():
    def boxes_only(images):
        return [Detections(d.boxes, d.scores, d.classes, d.image_size) for d in detect(images)]

    image = draw((240, 300), SCATTERED)
    merged = detect_by_tiles(image, Tiling(96, 0.3), boxes_only)
    assert merged.masks is None and len(merged) == len(find_colors(image))


def test_tiles_cover_the_image_and_have_one_size():
    for height, width in [(240, 300), (96, 97), (50, 400), (96, 96)]:
        tiles = Tiling(96, 0.25).tiles(height, width)
        covered = np.zeros((height, width), bool)
        for tile in tiles:
            covered[tile.slices] = True
        assert covered.all() and len({(t.x1 - t.x0, t.y1 - t.y0) for t in tiles}) == 1 and len(set(tiles)) == len(tiles)


@pytest.mark.parametrize(("arguments", "message"), [((8,), "at least 32"), ((64, 1.0), "from 0 to 0.9")])
def test_bad_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        Tiling(*arguments)


def test_memory_follows_the_objects_not_the_image():
    """One image has nine times the pixels of the other and the same objects."""
    peaks = []
    for side in (600, 1800):
        image = draw((side, side), SCATTERED)
        tracemalloc.start()
        detect_by_tiles(image, Tiling(128, 0.25, whole=False, batch_size=2), detect)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.fixture(scope="module")
def tiled() -> Predictor:
    return Predictor(example.WEIGHTS, device="cpu", tile=128, overlap=0.5)


@pytest.fixture(scope="module")
def mosaic() -> np.ndarray:
    """Four copies of an image of 128x128 side by side."""
    with Image.open(example.IMAGES[0]) as image:
        pixels = np.asarray(image.convert("RGB").resize((128, 128)))
    return np.tile(pixels, (2, 2, 1))


def test_an_image_of_one_tile_is_predicted_as_a_whole(tiled, mosaic):
    image = mosaic[:128, :128]
    expected, results = Predictor(example.WEIGHTS, device="cpu")(image), tiled(image)
    assert len(results) > 0 and np.array_equal(results.boxes, expected.boxes)
    assert np.array_equal(results.masks, expected.masks)
    of_config = Predictor(example.WEIGHTS, device="cpu", overrides=["D2_MASKRCNN.INFERENCE.TILE", 64])(image)
    assert np.array_equal(of_config.boxes, Predictor(example.WEIGHTS, device="cpu", tile=64)(image).boxes)
    assert not np.array_equal(of_config.boxes[:1], expected.boxes[:1])


def test_a_model_finds_the_objects_of_every_tile(tiled, mosaic, tmp_path):
    alone, results = tiled(mosaic[:128, :128]), tiled(mosaic)
    assert results.image_size == (256, 256)
    for dx, dy in [(0, 0), (128, 0), (0, 128), (128, 128)]:
        for index in range(len(alone)):
            near = np.abs(results.boxes - (alone.boxes[index] + [dx, dy, dx, dy])).max(axis=1, initial=0) < 6
            assert (near & (results.class_ids == alone.class_ids[index])).any()
    similar = coco_iou(results.detections.masks.rles(), results.detections.masks.rles()) > 0.5
    same_class = results.class_ids[:, None] == results.class_ids
    assert (similar & same_class).sum() == len(results)  # each is similar to itself only
    assert results.plot().shape == mosaic.shape and len(results.to_coco(1)) == len(results)
    Image.fromarray(mosaic).save(tmp_path / "mosaic.png")
    parser = build_parser(predict, "predict")
    options = ["--tile", "128", "--overlap", "0.5", "--output", str(tmp_path / "out")]
    predict.run(parser.parse_args([str(example.WEIGHTS), str(tmp_path / "mosaic.png"), *options]))
    assert (np.asarray(Image.open(tmp_path / "out" / "mosaic.png")) != mosaic).any()


def test_larger_files_are_read_for_tiles(tiled, mosaic, tmp_path, monkeypatch):
    Image.fromarray(mosaic).save(tmp_path / "mosaic.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    assert len(tiled(tmp_path / "mosaic.png")) > 0
    with pytest.raises(UserError, match="predict by tiles"):
        Predictor(example.WEIGHTS, device="cpu")(tmp_path / "mosaic.png")


@pytest.fixture
def windows(monkeypatch):
    """Decode small images by windows, too, and reduce what is drawn."""
    monkeypatch.setattr(large_images, "MIN_PIXELS", 0)
    monkeypatch.setattr(windowed_images, "MAX_TILED_PIXELS", 1000)
    monkeypatch.setattr(windowed_images, "DRAWN_SIDE", 64)


def write_tiff(path, pixels) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="deflate")


def test_windows_give_the_detections_of_the_whole_file(tiled, mosaic, tmp_path, windows, caplog):
    write_tiff(tmp_path / "a.tif", mosaic)
    write_tiff(tmp_path / "corrupt.tif", mosaic)
    content = bytearray((tmp_path / "corrupt.tif").read_bytes())
    content[-12_000:] = bytes(12_000)
    (tmp_path / "corrupt.tif").write_bytes(content)
    expected, results = tiled(mosaic), tiled(tmp_path / "a.tif")
    assert len(results) == len(expected) > 0 and results.image_size == (256, 256)
    np.testing.assert_allclose(results.boxes, expected.boxes, atol=0.5)
    np.testing.assert_array_equal(results.class_ids, expected.class_ids)
    assert results.plot().shape == results.image.shape == (64, 64, 3)
    assert "a.tif: 256x256 pixels are shown as 64x64" in caplog.text
    (listed,) = tiled([tmp_path / "corrupt.tif", tmp_path / "a.tif"])
    assert listed.path.endswith("a.tif") and np.array_equal(listed.boxes, results.boxes)
    assert "corrupt.tif: not a readable image" in caplog.text
    with pytest.raises(UserError, match=r"corrupt\.tif: not a readable image"):
        tiled(tmp_path / "corrupt.tif")


def test_command_with_windows(mosaic, tmp_path, windows):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_tiff(folder / "a.tif", mosaic)
    content = bytearray((folder / "a.tif").read_bytes())
    content[-12_000:] = bytes(12_000)
    (folder / "b.tif").write_bytes(content)
    options = ["--tile", "128", "--overlap", "0.5", "--output", str(out), "--save-json", str(tmp_path / "out.json")]
    arguments = build_parser(predict, "predict").parse_args([str(example.WEIGHTS), str(folder), *options])
    with pytest.raises(UserError, match=r"1 of 2 images could not be processed, the first: .*b\.tif"):
        predict.run(arguments)
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found) > 0 and {each["file_name"] for each in found} == {str(folder / "a.tif")}
    assert found[0]["segmentation"]["size"] == [256, 256]
    assert [path.name for path in out.iterdir()] == ["a.tif"]
    with Image.open(out / "a.tif") as image:
        assert image.size == (64, 64)


def test_a_drawn_image_that_is_too_large_for_its_format(tmp_path):
    image, out = tmp_path / "long.tif", tmp_path / "long.webp"
    Image.fromarray(np.zeros((1, 20_000), np.uint8)).save(image, compression="tiff_deflate")
    options = ["--tile", "20000", "--output", str(out), "--save-json", str(tmp_path / "out.json")]
    arguments = build_parser(predict, "predict").parse_args([str(example.WEIGHTS), str(image), *options])
    with pytest.raises(UserError, match=r"1 of 1 drawn images could not be written, .* at most 16383 pixels: .*\.tif"):
        predict.run(arguments)
    assert json.loads((tmp_path / "out.json").read_text()) == []
    assert not out.exists()


def test_thin_images_have_few_neighbors():
    """Each tile is compared with those that it overlaps, not with all later ones of its row."""
    image = np.zeros((1, 500_000, 3), np.uint8)
    image[0, 95:100] = COLORS[0]
    image[0, 499_000:499_100] = COLORS[1]
    merged = detect_by_tiles(image, Tiling(96, 0.1, whole=False, batch_size=4096), detect)
    assert sorted(merged.classes) == [0, 1]
    assert merged.boxes[merged.classes == 0].tolist() == [[95, 0, 100, 1]]
