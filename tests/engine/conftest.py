"""Trainings of seconds in this process."""

import pytest
import torch

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer

CONFIG = "configs/quickstart.yaml"
NO_TEST = ["DATASETS.TEST", "()", "D2_MASKRCNN.DATA.VAL_JSON", "", "D2_MASKRCNN.DATA.VAL_IMAGES", ""]


@pytest.fixture
def tiny_cfg(repo_dir, tiny_opts):
    """``tiny_cfg(KEY, VALUE, ...)``: the frozen config of a training of seconds."""

    def build(*opts):
        cfg = load_config(str(repo_dir / CONFIG), [*tiny_opts, *map(str, opts)])
        register_own_data(cfg)
        cfg.freeze()
        return cfg

    return build


@pytest.fixture
def trainer_of(tiny_cfg):
    """``trainer_of(KEY, VALUE, ..., resume=False)``: a trainer that is ready to train."""

    def build(*opts, resume=False):
        torch.manual_seed(0)  # of the initial weights
        trainer = Trainer(tiny_cfg(*opts))
        trainer.resume_or_load(resume=resume)
        return trainer

    return build
