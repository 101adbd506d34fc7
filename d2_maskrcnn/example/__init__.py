"""A small trained model and two images, to try the package without a network.

>>> from d2_maskrcnn import Predictor, example
>>> predictor = Predictor(example.WEIGHTS, device="cpu")
>>> predictor(example.IMAGES[0]).names
['circle', 'square', 'triangle', 'star']

The model is a narrow Mask R-CNN of ``configs/quickstart.yaml`` in float16, the images are drawn by
``datasets/prepare_shapes.py``; ``tools/make_example.py`` writes both.
"""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
WEIGHTS = _FOLDER / "model.pth"
IMAGES = (_FOLDER / "shapes_1.jpg", _FOLDER / "shapes_2.jpg")
