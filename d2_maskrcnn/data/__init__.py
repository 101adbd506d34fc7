"""Register, check and split datasets, decode images, map records to model inputs, and load batches."""

from d2_maskrcnn.data.checking import CheckReport, check, fix
from d2_maskrcnn.data.coco.checks import check_coco_json, check_datasets
from d2_maskrcnn.data.conversion import Conversion, convert
from d2_maskrcnn.data.loader import ResumableTrainLoader, build_resumable_train_loader
from d2_maskrcnn.data.mapper import MaskRCNNMapper, build_checked_test_loader, dataset_records
from d2_maskrcnn.data.own_data import register_own_data
from d2_maskrcnn.data.raw_images import channel_statistics
from d2_maskrcnn.data.splitting import split

__all__ = [
    "CheckReport",
    "Conversion",
    "MaskRCNNMapper",
    "ResumableTrainLoader",
    "build_checked_test_loader",
    "build_resumable_train_loader",
    "channel_statistics",
    "check",
    "check_coco_json",
    "check_datasets",
    "convert",
    "dataset_records",
    "fix",
    "register_own_data",
    "split",
]
