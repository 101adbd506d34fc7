"""``configs/mrcnn_R101_LSJ.yaml``: the published weights' names, and a training of one iteration."""

import hashlib

import numpy as np
import torch

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer
from detectron2.modeling import build_model

CONFIG = "configs/mrcnn_R101_LSJ.yaml"
# Of "name AxBxC" lines, sorted: all tensors of the model that Detectron2 0.6 builds from the model zoo's
# new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ.
TENSORS, DIGEST = 738, "367c2caa1bf01879407ff2420589c5d1e99e7e0e25a8b8bb72ee59ec6bc339e6"


def test_names_and_shapes_are_the_model_zoos(repo_dir):
    model = build_model(load_config(str(repo_dir / CONFIG), ["MODEL.DEVICE", "cpu"]))
    state = model.state_dict()
    lines = [f"{name} {'x'.join(map(str, value.shape))}" for name, value in sorted(state.items())]
    assert len(lines) == TENSORS
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST
    assert "proposal_generator.rpn_head.conv.conv1.weight" in state and "roi_heads.box_head.conv4.norm.weight" in state


def test_trains(repo_dir, tiny_opts):
    own = dict(zip(tiny_opts[::2], tiny_opts[1::2], strict=True))
    own |= {
        "MODEL.DEVICE": "cpu", "MODEL.ROI_HEADS.NUM_CLASSES": "4", "DATASETS.TEST": "()", "SOLVER.MAX_ITER": "1",
        "MODEL.ROI_BOX_HEAD.CONV_DIM": "16", "D2_MASKRCNN.INPUT.LSJ.IMAGE_SIZE": "64", "DATALOADER.NUM_WORKERS": "0",
        "INPUT.MASK_FORMAT": "bitmask", "D2_MASKRCNN.INPUT.COPY_PASTE.ENABLED": "True",
        "D2_MASKRCNN.DATA.VAL_JSON": "", "D2_MASKRCNN.DATA.VAL_IMAGES": "",
    }  # fmt: skip
    cfg = load_config(str(repo_dir / CONFIG), [word for pair in own.items() for word in pair])
    register_own_data(cfg)
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    assert trainer.cfg.SOLVER.BASE_LR == 0.1 * 2 / 64
    assert trainer.train_step.amp_dtype is torch.bfloat16
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert np.isfinite(trainer.storage.latest()["total_loss"][0])
