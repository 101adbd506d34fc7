"""Charts with unusual class names."""

import warnings

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from PIL import Image

from d2_maskrcnn.visualization.figures import (
    draw_class_ap,
    draw_confusion,
    draw_curves,
    new_figure,
    pixels,
    png,
    save_figure,
    show_bars,
)

NAMES = ["price_$5_to_$10", r"\alpha$", "a\nb\x1b[31m", "ящик", "日本語", "\ud800", "👩‍🚀", ""]


def charts(names):
    figure, (axes,) = new_figure()
    show_bars(axes, [0.0, 1.0], [2], "".join(names))
    curves = dict.fromkeys(names, np.linspace(1, 0, 101))
    matrix = np.eye(len(names) + 1, dtype=int)
    by_class = {"bbox": dict.fromkeys(names, 50.0), "segm": {}}
    return [
        figure,
        draw_confusion(matrix, names),
        draw_curves(np.linspace(0, 1, 101), curves, "".join(names)),
        draw_class_ap(by_class),
    ]


@pytest.mark.parametrize("names", [[], NAMES[:1], NAMES], ids=["none", "one", "all"])
def test_any_class_name_can_be_drawn(names):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # depends on the fonts of the machine
        for figure in charts(names):
            assert np.ptp(pixels(figure)) > 0


def test_dollar_signs_are_text():
    axes = draw_class_ap({"bbox": {"price_$5_to_$10": 50.0}}).axes[0]
    (label,) = axes.get_yticklabels()
    assert label.get_text().replace(r"\$", "$") == "price_$5_to_$10"
    assert not is_math_text(label.get_text())


def test_long_and_underscored_names():
    figure = draw_curves(np.linspace(0, 1, 101), {"x" * 100_000: np.ones(101), "_dog": np.ones(101)}, "t" * 100_000)
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.strip()[:4] for text in shown] == ["xxxx", "_dog", "mean"]
    assert max(map(len, [*shown, figure.axes[0].get_title()])) < 120


def test_saved_files_equal_the_figure(tmp_path):
    figure = draw_class_ap({"bbox": {"cat": 50.0}})
    image = save_figure(figure, tmp_path / "a" / "b.png")
    assert image.dtype == np.uint8 and image.shape[0] == 3
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a" / "b.png").convert("RGB")).transpose(2, 0, 1), image
    )
    assert png(figure).startswith(b"\x89PNG")
