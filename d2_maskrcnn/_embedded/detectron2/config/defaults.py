"""The default config: every key that a config file may set, with its default.

Keys and values are Detectron2's, so that its config files load. Keys of parts that this engine does not hold
(RetinaNet, keypoints, panoptic segmentation) are there for the same reason. Tuples are used where Detectron2
documents tuples; in files and on the command line a list does as well.
"""

from detectron2.config._defaults_heads import add_dense_head_defaults, add_roi_head_defaults
from detectron2.config._defaults_model import model_defaults
from detectron2.config._defaults_solver import solver_defaults, test_defaults
from detectron2.config.config import CONFIG_VERSION
from detectron2.config.config import CfgNode as CN


def _input_defaults() -> CN:
    node = CN()
    # Shortest side of a training image in pixels: one value, or several to draw from (a pair, with "range").
    node.MIN_SIZE_TRAIN = (800,)
    # "choice": one of MIN_SIZE_TRAIN; "range": any integer between its two values.
    node.MIN_SIZE_TRAIN_SAMPLING = "choice"
    # The longest side in pixels that resizing may give; it wins over the shortest side.
    node.MAX_SIZE_TRAIN = 1333
    # The same two in testing. 0 keeps images as they are.
    node.MIN_SIZE_TEST = 800
    node.MAX_SIZE_TEST = 1333
    # Flipping in training, with probability 0.5: "horizontal", "vertical" or "none".
    node.RANDOM_FLIP = "horizontal"
    # Random cropping in training. SIZE is (height, width): fractions for TYPE "relative" and "relative_range", pixels
    # for "absolute" and "absolute_range".
    node.CROP = CN({"ENABLED": False})
    node.CROP.TYPE = "relative_range"
    node.CROP.SIZE = [0.9, 0.9]
    # Channel order that the model gets: "BGR", "RGB" or another Pillow mode. PIXEL_MEAN and PIXEL_STD are in the same
    # order.
    node.FORMAT = "BGR"
    # How ground-truth masks are held: "polygon" (exact, small) or "bitmask".
    node.MASK_FORMAT = "polygon"
    return node


def _datasets_defaults() -> CN:
    node = CN()
    # Registered names. Several training sets are joined; test sets are evaluated one by one.
    node.TRAIN = ()
    node.TEST = ()
    # Files of precomputed proposals, one for each data set (only with MODEL.LOAD_PROPOSALS), and how many of them are
    # kept for each image.
    node.PROPOSAL_FILES_TRAIN = ()
    node.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
    node.PROPOSAL_FILES_TEST = ()
    node.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000
    return node


def _dataloader_defaults() -> CN:
    node = CN()
    # Worker processes of each training process.
    node.NUM_WORKERS = 4
    # Batches hold images that are all wide or all tall, so that less padding is needed.
    node.ASPECT_RATIO_GROUPING = True
    # "TrainingSampler", "RepeatFactorTrainingSampler" or "RandomSubsetTrainingSampler".
    node.SAMPLER_TRAIN = "TrainingSampler"
    # Repeat-factor sampling: categories in a smaller fraction of the images than this are repeated (0: none)...
    node.REPEAT_THRESHOLD = 0.0
    # ... by the square root of the ratio, or by the ratio itself.
    node.REPEAT_SQRT = True
    # Training images without any annotated object are left out.
    node.FILTER_EMPTY_ANNOTATIONS = True
    return node


_C = CN()
_C.VERSION = CONFIG_VERSION

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
# Seed of all random generators; negative: a random one. The same seed repeats a run only as far as all operators are
# deterministic.
_C.SEED = -1
# Let cuDNN time its algorithms and take the fastest. Worth it where images have few different sizes.
_C.CUDNN_BENCHMARK = False
# Precision of float32 matrix products: "" leaves PyTorch's setting, else "highest", "high" or "medium".
_C.FLOAT32_PRECISION = ""
# Training images are drawn for TensorBoard every so many iterations; 0: never.
_C.VIS_PERIOD = 0
# For quick experiments with code that no config reaches (see `set_global_cfg`).
_C.GLOBAL = CN({"HACK": 1.0})
