"""Packaging of d2_maskrcnn. Nothing is compiled and nothing heavy is imported here, so isolated builds work."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "d2_maskrcnn/__init__.py").read_text(), re.MULTILINE).group(1)

# Videos through FFmpeg (PyAV brings it along), and the assignment solver of the tracking. PyAV from 17.1 on: the tests
# made 15.0, 16.0 and 17.0 crash now and then, and versions before 15 do not say how a film is turned.
DEMO = ["av>=17.1", "scipy>=1.11"]
WANDB = ["wandb>=0.20"]  # training logs to Weights & Biases
INSPECTION = ["matplotlib>=3.8"]
NOTEBOOKS = [*INSPECTION, "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
TEST = [
    *DEMO,
    *NOTEBOOKS,
    *WANDB,
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "mypy>=1.14",
    "types-PyYAML",
    "types-tabulate",
]

setup(
    name="d2_maskrcnn",
    version=VERSION,
    description="Mask R-CNN with a ResNet101-FPN backbone as a Detectron2 plugin that installs with pip",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # The embedded engine is a package called detectron2 in a folder without __init__.py, hence namespace packages.
    packages=find_namespace_packages(include=["d2_maskrcnn", "d2_maskrcnn.*"]),
    package_data={
        "d2_maskrcnn": ["py.typed"],
        "d2_maskrcnn.ops.roi_align.cuda": ["*.cu", "*.cuh"],
        "d2_maskrcnn.inspection": ["templates/*"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "Pillow>=10",
        "opencv-python>=4.8",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "pycocotools>=2.0.8",
        "shapely>=2",  # fvcore cuts polygons with it when INPUT.CROP is on
        "faster-coco-eval>=1.6.5",
        "PyYAML>=6",
        "tabulate>=0.9",
        "termcolor>=2",
        "tqdm>=4.66",
        "tensorboard>=2.16",
        "matplotlib>=3.7",
    ],
    extras_require={"demo": DEMO, "inspection": INSPECTION, "notebooks": NOTEBOOKS, "test": TEST, "wandb": WANDB},
)
