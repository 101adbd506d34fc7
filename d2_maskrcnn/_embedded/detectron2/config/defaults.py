"""The default config.

Keys and values are Detectron2's, so that its config files can be read. This includes keys of parts that this engine
does not have (RetinaNet, keypoints, panoptic segmentation). Defaults are tuples where Detectron2's documentation has
tuples; a list can replace them.
"""

from detectron2.config._defaults_heads import add_dense_head_defaults, add_roi_head_defaults
from detectron2.config._defaults_model import model_defaults
from detectron2.config._defaults_solver import solver_defaults, test_defaults
from detectron2.config.compat import LATEST_VERSION
from detectron2.config.config import CfgNode as CN


def _input_defaults() -> CN:
    node = CN()
    # Shortest side of a training image in pixels: one value, or several to choose from (a pair for "range").
    node.MIN_SIZE_TRAIN = (800,)
    # "choice": a random one of MIN_SIZE_TRAIN; "range": a random integer between its two values.
    node.MIN_SIZE_TRAIN_SAMPLING = "choice"
    # Maximum length of the longest side in pixels; it has precedence over the shortest side.
    node.MAX_SIZE_TRAIN = 1333
    # The same for testing. 0: images are not resized.
    node.MIN_SIZE_TEST = 800
    node.MAX_SIZE_TEST = 1333
    # Flipping in training, with probability 0.5: "horizontal", "vertical" or "none".
    node.RANDOM_FLIP = "horizontal"
    # Random cropping in training. SIZE is (height, width): fractions for TYPE "relative" and "relative_range", pixels
    # for "absolute" and "absolute_range".
    node.CROP = CN({"ENABLED": False})
    node.CROP.TYPE = "relative_range"
    node.CROP.SIZE = [0.9, 0.9]
    # Channel order of the model's input: "BGR", "RGB" or another Pillow mode. PIXEL_MEAN and PIXEL_STD have the same
    # order.
    node.FORMAT = "BGR"
    # Representation of ground-truth masks: "polygon" (exact, small) or "bitmask".
    node.MASK_FORMAT = "polygon"
    return node


def _datasets_defaults() -> CN:
    node = CN()
    # Registered names. Training datasets are concatenated; test datasets are evaluated one by one.
    node.TRAIN = ()
    node.TEST = ()
    # Files of precomputed proposals, one per dataset (only with MODEL.LOAD_PROPOSALS), and their number per image.
    node.PROPOSAL_FILES_TRAIN = ()
    node.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
    node.PROPOSAL_FILES_TEST = ()
    node.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000
    return node


def _dataloader_defaults() -> CN:
    node = CN()
    # Worker processes per training process.
    node.NUM_WORKERS = 4
    # Whether batches have only wide or only tall images, which need less padding.
    node.ASPECT_RATIO_GROUPING = True
    # "TrainingSampler", "RepeatFactorTrainingSampler" or "RandomSubsetTrainingSampler".
    node.SAMPLER_TRAIN = "TrainingSampler"
    # Repeat-factor sampling: categories in a smaller share of the images are repeated (0: none) ...
    node.REPEAT_THRESHOLD = 0.0
    # ... by the square root of the ratio, or by the ratio itself.
    node.REPEAT_SQRT = True
    # Whether training images without annotations are removed.
    node.FILTER_EMPTY_ANNOTATIONS = True
    return node


_C = CN()
_C.VERSION = LATEST_VERSION

_C.MODEL = model_defaults()
add_roi_head_defaults(_C.MODEL)
add_dense_head_defaults(_C.MODEL)
_C.INPUT = _input_defaults()
_C.DATASETS = _datasets_defaults()
_C.DATALOADER = _dataloader_defaults()
_C.SOLVER = solver_defaults()
_C.TEST = test_defaults()

# Folder of checkpoints, logs and results.
_C.OUTPUT_DIR = "./output"
# Seed of all random generators; negative: a random one. A run is reproducible as far as its operators are
# deterministic.
_C.SEED = -1
# Whether cuDNN measures its algorithms and takes the fastest, which pays off for few different image sizes.
_C.CUDNN_BENCHMARK = False
# Precision of float32 matrix products: "" leaves PyTorch's setting, else "highest", "high" or "medium".
_C.FLOAT32_PRECISION = ""
# Iterations between training images in TensorBoard; 0: none.
_C.VIS_PERIOD = 0
# For quick experiments with code that has no config (see `set_global_cfg`).
_C.GLOBAL = CN({"HACK": 1.0})
