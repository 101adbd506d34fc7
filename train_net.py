"""Trains or evaluates the Mask R-CNN that a config describes.

    python train_net.py --config-file configs/mrcnn_R101.yaml
    python train_net.py --config-file configs/mrcnn_R101.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
    python train_net.py --config-file configs/mrcnn_R101.yaml --num-gpus 8
    torchrun --nproc-per-node 8 train_net.py --config-file configs/mrcnn_R101.yaml

``KEY VALUE`` pairs after the options override the config. On a machine without a GPU, ``--num-gpus N`` starts N
processes.
"""

import argparse
import sys

# Importing the plugin chooses the engine, so it comes before anything of detectron2.
from d2_maskrcnn import UserError
from d2_maskrcnn.engine import Trainer, build_checkpointer, draw_test_sets, launch, run_main, setup
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Loads ``MODEL.WEIGHTS`` (with ``resume``, the last checkpoint of ``OUTPUT_DIR``) and measures it on
    ``DATASETS.TEST``.
    """
    model = Trainer.build_model(cfg)
    checkpointer = build_checkpointer(cfg, model)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError(
            "--eval-only has no weights to evaluate: add MODEL.WEIGHTS path/to/model.pth, or --resume for the last "
            f"checkpoint of OUTPUT_DIR ({cfg.OUTPUT_DIR})."
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if checkpointer.last_report is not None and not checkpointer.last_report.is_complete:
        raise UserError(
            f"--eval-only: {checkpointer.last_report.path} does not fill this model (listed above): name the weights "
            "of a whole detector trained with this config, not those of a backbone."
        )
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, "tta": Trainer.test_with_augmentation(cfg, model)}
    if comm.is_main_process():
        draw_test_sets(cfg, model)
    return results


def main(args: argparse.Namespace) -> None:
    """What every process of the job runs."""
    cfg = setup(args)
    if args.eval_only:
        evaluate(cfg, resume=args.resume)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser(__doc__).parse_args()
    sys.exit(
        run_main(
            lambda: launch(
                main,
                arguments.num_gpus,
                arguments.num_machines,
                arguments.machine_rank,
                arguments.dist_url if arguments.num_machines > 1 else "auto",
                (arguments,),
            )
        )
    )
