import numpy as np
import pytest
from PIL import Image, ImageOps

import detectron2.data.transforms as T


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 256, (50, 60, 3), dtype=np.uint8)


def place_of_square(x, y, size=4, shape=(50, 60)):
    """A black image with a bright square, and the square's box."""
    image = np.zeros((*shape, 3), dtype=np.uint8)
    image[y : y + size, x : x + size] = 255
    return image, np.array([[x, y, x + size, y + size]], dtype=float)


def box_of_bright_pixels(image):
    rows, columns = np.nonzero(image[:, :, 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("interp", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("shape", [(50, 60), (50, 60, 1), (50, 60, 3), (50, 60, 4), (50, 60, 5)])
def test_uint8_images_are_resized_by_pil(image, shape, interp):
    pixels = np.resize(image, shape)
    resized = T.ResizeTransform(50, 60, 31, 45, interp).apply_image(pixels)
    assert resized.shape == (31, 45, *shape[2:])
    assert resized.dtype == np.uint8
    for before, after in zip(np.atleast_3d(pixels).T, np.atleast_3d(resized).T, strict=True):
        expected = Image.fromarray(np.ascontiguousarray(before.T)).resize((45, 31), interp)
        np.testing.assert_array_equal(after.T, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_images_keep_type_and_range(dtype):
    ramp = np.tile(np.arange(8, dtype=dtype), (6, 1))
    resized = T.ResizeTransform(6, 8, 12, 16).apply_image(ramp)
    assert resized.dtype == dtype
    # Pixel centers of the finer grid at (x + 0.5) / 2 - 0.5, clamped at the borders.
    expected = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7)
    np.testing.assert_allclose(resized, np.tile(expected, (12, 1)), atol=1e-5)


def test_16_bit_images_are_rounded_not_wrapped():
    image = np.full((4, 4), 65535, dtype=np.uint16)
    assert (T.ResizeTransform(4, 4, 7, 9).apply_image(image) == 65535).all()
    with pytest.raises(ValueError, match="uint8"):
        T.ResizeTransform(4, 4, 7, 9, Image.Resampling.LANCZOS).apply_image(image)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
@pytest.mark.parametrize("size", [(25, 30), (100, 180)])
def test_labels_are_never_mixed(dtype, size):
    labels = np.random.RandomState(0).randint(0, 2, (50, 60)).astype(dtype)
    resized = T.ResizeTransform(50, 60, *size).apply_segmentation(labels)
    assert resized.dtype == dtype
    expected = T.ResizeTransform(50, 60, *size).apply_segmentation(labels.astype(np.uint8))  # by PIL
    np.testing.assert_array_equal(resized.astype(np.uint8), expected)


def test_resizing_checks_the_size(image):
    with pytest.raises(ValueError, match=r"\(40, 60\).*\(50, 60\)"):
        T.ResizeTransform(40, 60, 10, 10).apply_image(image)
    with pytest.raises(ValueError, match=r"\(40, 60\)"):
        T.ResizeTransform(40, 60, 10, 10).apply_segmentation(image[:, :, 0])


def test_points_boxes_and_the_inverse_of_resizing():
    transform = T.ResizeTransform(50, 60, 100, 30)
    points = np.array([[0.0, 0.0], [60.0, 50.0], [-6.0, 75.0]])
    moved = transform.apply_coords(points.copy())
    np.testing.assert_allclose(moved, [[0, 0], [30, 100], [-3, 150]])
    np.testing.assert_allclose(transform.inverse().apply_coords(moved), points)
    assert transform.apply_box(np.zeros((0, 4))).shape == (0, 4)
    assert transform.apply_coords(np.zeros((0, 2))).shape == (0, 2)


# (h, w), length, max_size -> what Detectron2 0.6 gives
SIZES = [
    ((480, 640), 800, 1333, (800, 1067)),
    ((640, 480), 800, 1333, (1067, 800)),
    ((427, 640), 800, 1333, (800, 1199)),
    ((300, 900), 800, 1333, (444, 1333)),
    ((600, 600), 599, 1000, (599, 599)),
    ((1, 1), 800, 1333, (800, 800)),
]


@pytest.mark.parametrize(("shape", "length", "max_size", "expected"), SIZES)
def test_output_shapes(shape, length, max_size, expected):
    assert T.ResizeShortestEdge.get_output_shape(*shape, length, max_size) == expected


def test_shortest_edge_draws_from_the_range_or_the_choices(image):
    np.random.seed(0)
    drawn = {T.ResizeShortestEdge((30, 33)).get_transform(image).new_h for _ in range(60)}
    assert drawn == {30, 31, 32, 33}
    augmentation = T.ResizeShortestEdge((30, 40, 50), 45, "choice")
    drawn = {augmentation.get_transform(image).new_w for _ in range(60)}
    assert drawn == {36, 45}  # 48 and 60 exceed max_size
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    assert T.ResizeShortestEdge(25, sample_style="choice").get_transform(image).new_h == 25


@pytest.mark.parametrize(
    ("lengths", "style", "message"),
    [((), "choice", "short_edge_length is empty"), ((1, 2, 3), "range", r"\(1, 2, 3\)"), (5, "any", "'any'")],
)
def test_shortest_edge_refuses_bad_arguments(lengths, style, message):
    with pytest.raises(ValueError, match=message):
        T.ResizeShortestEdge(lengths, 100, style)


def test_other_resizings(image):
    np.random.seed(0)
    assert T.Resize(17)(T.AugInput(image)).new_h == 17
    assert T.Resize((17, 19))(T.AugInput(image)).new_w == 19
    sizes = {(t.new_h, t.new_w) for t in (T.RandomResize([(10, 20), (30, 40)]).get_transform(image) for _ in range(20))}
    assert sizes == {(10, 20), (30, 40)}
    for _ in range(20):
        resize = T.ResizeScale(0.5, 2, 80, 90).get_transform(image)
        assert 37 <= resize.new_h <= 150
        assert resize.new_w / resize.new_h == pytest.approx(60 / 50, rel=0.03)
        assert resize.new_h <= 160
        assert resize.new_w <= 180


@pytest.mark.parametrize("horizontal", [True, False])
def test_flips(image, horizontal):
    flip = T.RandomFlip(1.0, horizontal=horizontal, vertical=not horizontal)
    image, boxes = place_of_square(5, 9)
    aug_input = T.AugInput(image, boxes=boxes, sem_seg=image[:, :, 0])
    flip(aug_input)
    np.testing.assert_array_equal(aug_input.image, image[:, ::-1] if horizontal else image[::-1])
    np.testing.assert_array_equal(aug_input.sem_seg, aug_input.image[:, :, 0])
    assert aug_input.boxes[0].tolist() == box_of_bright_pixels(aug_input.image)
    assert isinstance(T.RandomFlip(0.0).get_transform(image), T.NoOpTransform)


def test_a_flip_comes_as_often_as_it_should(image):
    np.random.seed(0)
    flip = T.RandomFlip(0.3)
    done = sum(isinstance(flip.get_transform(image), T.HFlipTransform) for _ in range(1000))
    assert 250 < done < 350
    for both in (True, False):
        with pytest.raises(ValueError, match=f"horizontal={both}, vertical={both}"):
            T.RandomFlip(horizontal=both, vertical=both)


CROPS = [
    ("relative", (0.33, 0.71), (17, 17), (43, 43)),
    ("relative_range", (0.3, 0.4), (15, 50), (24, 60)),
    ("absolute", (20, 100), (20, 20), (60, 60)),
    ("absolute_range", (10, 100), (10, 50), (10, 60)),
    ("absolute_range", (70, 100), (50, 50), (60, 60)),
]


@pytest.mark.parametrize(("crop_type", "size", "heights", "widths"), CROPS)
def test_crops(image, crop_type, size, heights, widths):
    np.random.seed(0)
    for _ in range(50):
        aug_input = T.AugInput(image, boxes=np.array([[10.0, 10, 20, 20]]))
        crop = T.RandomCrop(crop_type, size)(aug_input)
        assert heights[0] <= crop.h <= heights[1]
        assert widths[0] <= crop.w <= widths[1]
        assert 0 <= crop.y0 <= 50 - crop.h
        assert 0 <= crop.x0 <= 60 - crop.w
        np.testing.assert_array_equal(aug_input.image, image[crop.y0 : crop.y0 + crop.h, crop.x0 : crop.x0 + crop.w])
        assert aug_input.boxes[0, :2].tolist() == [10 - crop.x0, 10 - crop.y0]


def test_a_crop_cuts_polygons():
    pytest.importorskip("shapely")
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    (cut,) = T.CropTransform(5, 6, 20, 20).apply_polygons([square])
    assert {tuple(point) for point in cut.tolist()} == {(0.0, 0.0), (5.0, 0.0), (5.0, 4.0), (0.0, 4.0)}
    assert T.CropTransform(11, 11, 5, 5).apply_polygons([square]) == []


def test_relative_crops_beyond_the_image_are_refused_when_they_are_used():
    crop = T.RandomCrop("relative", (0.5, 1.5))
    assert str(crop) == "RandomCrop(crop_type='relative', crop_size=(0.5, 1.5))"
    with pytest.raises(ValueError, match=r"1\.5"):
        crop.get_crop_size((10, 10))


@pytest.mark.parametrize(
    ("crop_type", "size", "message"),
    [
        ("relative", (), r"\(\)"),
        ("any", (0.5, 0.5), "'any'"),
        ("absolute", (0, 5), r"\(0, 5\)"),
        ("absolute_range", (9, 5), r"\(9, 5\)"),
    ],
)
def test_crops_refuse_bad_arguments(crop_type, size, message):
    with pytest.raises(ValueError, match=message):
        T.RandomCrop(crop_type, size)


@pytest.mark.parametrize("size", [(20, 30), (70, 30), (70, 90)])
def test_a_fixed_size_crop_always_has_its_size(image, size):
    for _ in range(5):
        aug_input = T.AugInput(image, sem_seg=image[:, :, 0])
        T.FixedSizeCrop(size)(aug_input)
        assert aug_input.image.shape == (*size, 3)
        assert aug_input.sem_seg.shape == size
        assert (aug_input.image[50:] == 128).all()
        assert (aug_input.sem_seg[50:] == 255).all()
        assert (aug_input.image[:, 60:] == 128).all()
    unpadded = T.AugInput(image)
    T.FixedSizeCrop(size, pad=False)(unpadded)
    assert unpadded.image.shape == (min(size[0], 50), min(size[1], 60), 3)


def test_an_extent_follows_its_boxes():
    image, boxes = place_of_square(20, 16, 12)
    extent = T.ExtentTransform((10.0, 6.0, 40.0, 46.0), (80, 60))  # twice as large
    assert extent.apply_box(boxes)[0].tolist() == [20, 20, 44, 44]
    assert box_of_bright_pixels(extent.apply_image(image)) == [20, 20, 44, 44]
    assert extent.apply_segmentation(image[:, :, 0]).shape == (80, 60)
    np.random.seed(0)
    for _ in range(10):
        aug_input = T.AugInput(image, boxes=boxes)
        T.RandomExtent((0.9, 1.1), (0.1, 0.1))(aug_input)
        np.testing.assert_allclose(box_of_bright_pixels(aug_input.image), aug_input.boxes[0], atol=1.01)


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("angle", [0, 30, 90, -135, 360])
def test_a_rotation_takes_points_where_it_takes_pixels(angle, expand):
    image, _ = place_of_square(24, 20, 10)
    rotation = T.RotationTransform(50, 60, angle, expand=expand)
    rotated = rotation.apply_image(image)
    if not expand:
        assert rotated.shape == image.shape
    rows, columns = np.nonzero(rotated[:, :, 0] > 127)
    center = rotation.apply_coords(np.array([[29.0, 25.0]]))[0]
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], center, atol=0.1)
    mask = rotation.apply_segmentation(image[:, :, 0] > 0)
    assert mask.dtype == bool
    assert mask.sum() == pytest.approx(100, abs=6)
    assert rotation.apply_coords(np.zeros((0, 2))).shape == (0, 2)


def test_a_quarter_turn_is_exact_and_can_be_undone(image):
    turn = T.RotationTransform(50, 60, 90)
    turned = turn.apply_image(image)
    np.testing.assert_array_equal(turned, np.rot90(image))
    np.testing.assert_array_equal(turn.inverse().apply_image(turned), image)
    points = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(turn.inverse().apply_coords(turn.apply_coords(points)), points)
    with pytest.raises(NotImplementedError, match="expand"):
        T.RotationTransform(50, 60, 90, expand=False).inverse()
    with pytest.raises(ValueError, match=r"\(50, 60\)"):
        turn.apply_image(turned)


def test_random_rotations(image):
    np.random.seed(0)
    angles = [T.RandomRotation([-10, 30]).get_transform(image).angle for _ in range(50)]
    assert -10 <= min(angles) < 0 < 20 < max(angles) <= 30
    chosen = {T.RandomRotation([10, 20], sample_style="choice").get_transform(image).angle for _ in range(20)}
    assert chosen == {10, 20}
    assert isinstance(T.RandomRotation(360).get_transform(image), T.NoOpTransform)
    middle = T.RandomRotation([5, 6], center=[(0.25, 0.5), (0.5, 0.5)], expand=False).get_transform(image).center
    assert 15 <= middle[0] <= 30
    assert middle[1] == 25
    choices = T.RandomRotation([5], center=[(0.1, 0.2), (0.5, 0.5)], sample_style="choice", expand=False)
    assert {choices.get_transform(image).center for _ in range(20)} == {(6.0, 10.0), (30.0, 25.0)}
    for arguments, message in ((([1, 2, 3],), "angle"), (([1, 2], True, [(0, 0)]), "center")):
        with pytest.raises(ValueError, match=message):
            T.RandomRotation(*arguments)
    with pytest.raises(ValueError, match="'any'"):
        T.RandomRotation(5, sample_style="any")


@pytest.mark.parametrize("kind", [T.RandomBrightness, T.RandomContrast, T.RandomSaturation])
def test_intensities(image, kind):
    same = kind(1.0, 1.0).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(same, image)
    nothing_left = kind(0.0, 0.0).get_transform(image).apply_image(image)
    if kind is T.RandomBrightness:
        assert (nothing_left == 0).all()
    elif kind is T.RandomContrast:
        assert (nothing_left == int(image.mean())).all()
    else:
        grey = np.asarray(Image.fromarray(image).convert("L"), dtype=int)
        assert (nothing_left[:, :, 0] == nothing_left[:, :, 2]).all()
        assert np.abs(nothing_left[:, :, 0] - grey).max() <= 1
    np.random.seed(0)
    weights = [kind(0.5, 1.5).get_transform(image).dst_weight for _ in range(50)]
    assert 0.5 <= min(weights) < 0.7 < 1.3 < max(weights) <= 1.5


def test_lighting_adds_one_color_to_all_pixels():
    grey = np.full((4, 5, 3), 0.5, dtype=np.float32)
    np.random.seed(0)
    lit = T.RandomLighting(0.1).get_transform(grey).apply_image(grey)
    assert np.ptp(lit.reshape(-1, 3), axis=0).max() == 0
    assert np.abs(lit[0, 0] - 0.5).max() > 1e-3
    # Detectron2 0.6 with the same seed, scale 1 and an image of zeros.
    np.random.seed(1)
    zeros = np.zeros((1, 1, 3), dtype=np.float32)
    color = T.RandomLighting(1.0).get_transform(zeros).apply_image(zeros)[0, 0]
    np.testing.assert_allclose(color, [-0.20971936, -0.20320736, -0.19919108], atol=1e-6)


@pytest.mark.parametrize("kind", [T.RandomSaturation(0.5, 1), T.RandomLighting(0.1)])
def test_color_needs_three_channels(kind):
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        kind(T.AugInput(np.zeros((4, 5), dtype=np.uint8)))


def test_color_transforms_change_pixels_only():
    image = np.full((4, 5, 3), 100, dtype=np.uint8)
    points, labels = np.array([[1.0, 2.0]]), np.ones((4, 5))
    darker = T.ColorTransform(lambda pixels: pixels // 2)
    assert (darker.apply_image(image) == 50).all()
    assert darker.apply_coords(points) is points
    assert darker.apply_segmentation(labels) is labels
    assert darker.inverse().apply_image(image) is image
    inverted = T.PILColorTransform(ImageOps.invert).apply_image(image)
    assert (inverted == 155).all()
    with pytest.raises(ValueError, match="must be a function"):
        T.ColorTransform(0.5)
