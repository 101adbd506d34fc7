import numpy as np
import pytest

import detectron2.data.transforms as T


class CropToFirstBox(T.Augmentation):
    """Read two attributes of the input, by the names of the parameters."""

    def get_transform(self, boxes, image):
        assert image.ndim == 3
        x0, y0, x1, y1 = boxes[0].astype(int).tolist()
        return T.CropTransform(x0, y0, x1 - x0, y1 - y0)


class Pad(T.Augmentation):
    def __init__(self, left, right=0):
        self._init(locals())

    def get_transform(self, image):
        return T.PadTransform(self.left, 0, self.right, 0)


class Anything(T.Augmentation):
    def get_transform(self, *args):
        return T.NoOpTransform()


@pytest.fixture
def aug_input():
    image = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)
    return T.AugInput(image, boxes=np.array([[4.0, 6.0, 14.0, 12.0]]), sem_seg=image[:, :, 0])


def test_no_augmentation_changes_nothing(aug_input):
    image = aug_input.image
    transforms = aug_input.apply_augmentations([])
    assert len(transforms) == 0
    assert aug_input.image is image
    np.testing.assert_array_equal(transforms.apply_coords(np.array([[1.0, 2.0]])), [[1, 2]])


def test_an_augmentation_sees_what_those_before_it_have_done(aug_input):
    transforms = T.AugmentationList([T.Resize((40, 60)), CropToFirstBox(), T.RandomFlip(1.0)])(aug_input)
    assert [type(t).__name__ for t in transforms.transforms] == ["ResizeTransform", "CropTransform", "HFlipTransform"]
    assert aug_input.image.shape == (12, 20, 3)
    assert aug_input.sem_seg.shape == (12, 20)
    assert aug_input.boxes.tolist() == [[0, 0, 20, 12]]
    assert transforms.apply_box(np.array([[4.0, 6.0, 14.0, 12.0]])).tolist() == [[0, 0, 20, 12]]


def test_constructor_arguments_become_attributes(aug_input):
    Pad(2, right=3)(aug_input)
    assert aug_input.image.shape == (20, 35, 3)


def test_transforms_and_lists_are_augmentations_too(aug_input):
    nested = T.AugmentationList([T.HFlipTransform(30), [T.VFlipTransform(20), T.RandomFlip(0.0)]])
    before = aug_input.image
    transforms = nested(aug_input)
    np.testing.assert_array_equal(aug_input.image, before[::-1, ::-1])
    assert len(transforms) == 3
    with pytest.raises(TypeError, match="str"):
        T.AugmentationList(["flip"])


@pytest.mark.parametrize(("prob", "expected"), [(0.0, "NoOpTransform"), (1.0, "HFlipTransform")])
def test_random_apply(aug_input, prob, expected):
    for what in (T.HFlipTransform(30), T.RandomFlip(1.0)):
        assert type(T.RandomApply(what, prob)(aug_input)).__name__ == expected
    with pytest.raises(ValueError, match="2"):
        T.RandomApply(T.RandomFlip(), 2)


def test_bare_images_and_inputs(aug_input):
    image = aug_input.image
    flipped, transforms = T.apply_augmentations([T.RandomFlip(1.0)], image)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    assert isinstance(transforms[0], T.HFlipTransform)
    same, _ = T.apply_transform_gens([T.RandomFlip(1.0)], aug_input)
    assert same is aug_input
    np.testing.assert_array_equal(aug_input.image, flipped)


def test_the_same_seed_gives_the_same_transforms():
    augmentations = [T.RandomCrop("relative_range", (0.4, 0.6)), T.ResizeShortestEdge((8, 40)), T.RandomFlip()]
    image = np.zeros((50, 60, 3), dtype=np.uint8)

    def draw():
        np.random.seed(5)
        return [str(T.apply_augmentations(augmentations, image)[1]) for _ in range(3)]

    first = draw()
    assert first == draw()
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[1]], TypeError, "list"),
        (np.zeros((2, 2), dtype=np.int64), TypeError, "int64"),
        (np.zeros((1, 2, 2, 3), dtype=np.uint8), ValueError, r"\(1, 2, 2, 3\)"),
    ],
)
def test_an_input_must_be_an_image(image, error, message):
    with pytest.raises(error, match=message):
        T.AugInput(image)


def test_what_an_augmentation_needs_must_be_there():
    without_boxes = T.AugInput(np.zeros((4, 4, 3), dtype=np.uint8))
    del without_boxes.boxes
    with pytest.raises(AttributeError, match="'boxes'"):
        CropToFirstBox()(without_boxes)
    with pytest.raises(TypeError, match="Anything"):
        Anything()(without_boxes)
    with pytest.raises(NotImplementedError, match="Augmentation"):
        T.Augmentation().get_transform()


def test_augmentations_describe_themselves():
    assert str(T.RandomFlip()) == "RandomFlip()"
    assert str(Pad(3)) == "Pad(left=3)"
    assert str(T.ResizeShortestEdge((640, 800), 1333, "choice")) == (
        "ResizeShortestEdge(short_edge_length=(640, 800), max_size=1333, sample_style='choice')"
    )
    assert str(T.AugmentationList([T.RandomCrop("absolute", (3, 4))])) == (
        "AugmentationList[RandomCrop(crop_type='absolute', crop_size=(3, 4))]"
    )
    assert str(T.RandomApply(T.HFlipTransform(3), 0.25)) == "RandomApply(HFlipTransform(width=3), prob=0.25)"


# Augmentation, positional and keyword arguments, and the number that follows in the sequence of seed 0 on Detectron2.
NEXT_NUMBERS = [
    ("ResizeShortestEdge", (20,), {"sample_style": "choice"}, 0.5928),
    ("ResizeShortestEdge", ((20, 30),), {}, 0.8443),
    ("ResizeShortestEdge", ((20, 30, 40),), {"sample_style": "choice"}, 0.5928),
    ("ResizeScale", (0.1, 2.0, 32, 32), {}, 0.7152),
    ("RandomResize", ([(20, 20), (30, 30), (40, 40)],), {}, 0.5928),
    ("RandomFlip", (), {}, 0.7152),
    ("RandomCrop", ("relative_range", (0.3, 0.3)), {}, 0.5449),
    ("RandomCrop", ("absolute", (10, 10)), {}, 0.7152),
    ("RandomCrop", ("absolute_range", (10, 20)), {}, 0.8473),
    ("FixedSizeCrop", ((16, 16),), {}, 0.7152),
    ("RandomExtent", ((0.5, 1.5), (0.2, 0.2)), {}, 0.5449),
    ("RandomContrast", (0.5, 1.5), {}, 0.7152),
    ("RandomBrightness", (0.5, 1.5), {}, 0.7152),
    ("RandomSaturation", (0.5, 1.5), {}, 0.7152),
    ("RandomLighting", (0.5,), {}, 0.4237),
    ("RandomRotation", (30,), {}, 0.7152),
    ("RandomRotation", ([-30, 30],), {"expand": False, "center": [(0.3, 0.3), (0.7, 0.7)]}, 0.5449),
    ("RandomRotation", ([-30, 0, 30],), {"sample_style": "choice"}, 0.5928),
    ("RandomRotation", ([-30, 30],), {"expand": False, "center": (0.3, 0.3)}, 0.5449),
]


@pytest.mark.parametrize(("name", "positional", "keywords", "following"), NEXT_NUMBERS)
def test_uses_as_many_random_numbers_as_detectron2(name, positional, keywords, following):
    np.random.seed(0)
    getattr(T, name)(*positional, **keywords).get_transform(np.full((24, 32, 3), 100, np.uint8))
    assert np.random.rand() == pytest.approx(following, abs=1e-4)
