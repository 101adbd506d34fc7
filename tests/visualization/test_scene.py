import numpy as np

from d2_maskrcnn.visualization.palette import RED, YELLOW
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_marks, box_points, draw_scene, raster

BLACK = np.zeros((100, 200, 3), np.uint8)
WHITE = (255, 255, 255)


def scene(*layers):
    return Scene("scene", "A scene", BLACK, (100, 200), list(layers))


def test_no_layers():
    assert not raster(scene()).any()
    assert len(draw_scene(scene()).axes) == 1 and len(draw_scene(scene(), split=True).axes) == 1


def test_dotted_lines_have_gaps_and_hidden_layers_are_left_out():
    box = box_marks(np.array([[10.0, 10.0, 90.0, 90.0]]))
    share = {
        style: raster(scene(Layer(style, box, WHITE, style)), side=200)[10, 12:88].any(axis=-1).mean()
        for style in ("solid", "dashed", "dotted")
    }
    assert share["solid"] == 1 and 0.5 < share["dashed"] < 0.8 and 0.3 < share["dotted"] < 0.6
    assert not raster(scene(Layer("hidden", box, shown=False))).any()


def test_lines_are_open():
    line = Mark([np.array([[10.0, 10.0], [100.0, 10.0], [100.0, 60.0]])], line=True)
    image = raster(scene(Layer("moves", [line], WHITE)), side=200).any(axis=-1)
    assert image[10, 50] and image[40, 100] and not image[35, 55]


def test_the_frame_is_independent_of_the_image():
    """Coordinates of a 50x100 frame over an image of 100x200 pixels."""
    box = box_marks(np.array([[5.0, 5.0, 45.0, 45.0]]))
    image = raster(Scene("scene", "A scene", BLACK, (50, 100), [Layer("box", box, WHITE)]), side=200)
    assert image.shape == (100, 200, 3) and image[10, 20:80].all() and not image[20:80, 20:80].any()


def test_split_figures_show_the_backdrop_everywhere_and_no_empty_layer():
    box = box_marks(np.array([[10.0, 10.0, 90.0, 90.0]]))
    layers = [Layer("one", box), Layer("none", []), Layer("two", box), Layer("ground truth", box, backdrop=True)]
    titles = [axes.get_title() for axes in draw_scene(scene(*layers), split=True).axes]
    assert titles == ["one (1)\nground truth (1)", "two (1)\nground truth (1)"]


def test_labels_of_one_layer_do_not_hide_those_of_another():
    """Two layers with the same box: of the layer below, the label remains."""

    def pixels(*layers):
        return (raster(scene(*layers), side=200) == RED).all(axis=-1).sum()

    corners = box_points((60.0, 40.0, 140.0, 90.0))
    below, above, unlabeled = (
        Layer("layer", [Mark([corners], label=label)], color)
        for label, color in (("TP", RED), ("TP", YELLOW), ("", RED))
    )
    assert pixels(below, above) >= pixels(below) - pixels(unlabeled) > 0
