"""Scenes as arrays and as figures."""

import numpy as np

from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_marks, draw_scene, raster

BLACK = np.zeros((100, 200, 3), np.uint8)


def scene(*layers):
    return Scene("scene", "A scene", BLACK, (100, 200), list(layers))


def test_no_layers():
    assert not raster(scene()).any()
    assert len(draw_scene(scene()).axes) == 1 and len(draw_scene(scene(), split=True).axes) == 1


def test_dotted_outlines_have_gaps_and_hidden_layers_are_left_out():
    box = box_marks(np.array([[10.0, 10.0, 90.0, 90.0]]))
    share = {
        style: raster(scene(Layer(style, box, "#ffffff", style)), side=200)[10, 12:88].any(axis=-1).mean()
        for style in ("solid", "dashed", "dotted")
    }
    assert share["solid"] == 1 and 0.5 < share["dashed"] < 0.8 and 0.3 < share["dotted"] < 0.6
    assert not raster(scene(Layer("hidden", box, shown=False))).any()


def test_lines_are_open():
    line = Mark([np.array([[10.0, 10.0], [100.0, 10.0], [100.0, 60.0]])], line=True)
    image = raster(scene(Layer("moves", [line], "#ffffff")), side=200).any(axis=-1)
    assert image[10, 50] and image[40, 100] and not image[35, 55]


def test_split_figures_show_the_backdrop_everywhere_and_no_empty_layer():
    box = box_marks(np.array([[10.0, 10.0, 90.0, 90.0]]))
    layers = [Layer("one", box), Layer("none", []), Layer("two", box), Layer("annotated", box, backdrop=True)]
    titles = [axes.get_title() for axes in draw_scene(scene(*layers), split=True).axes]
    assert titles == ["one (1)\nannotated (1)", "two (1)\nannotated (1)"]
