"""Register this plugin's components under Detectron2's names, on the embedded engine only.

Unmodified configs of the model zoo then build this plugin's model, also in a program that registers components of its
own. On an installed Detectron2 the names remain Detectron2's.
"""

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7, build_maskrcnn_resnet_fpn_backbone
from d2_maskrcnn.modeling.backbone.resnet import BasicBlock, Bottleneck, ResNet, Stem, build_resnet, make_stage
from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.meta_arch import MaskRCNN
from d2_maskrcnn.modeling.roi_heads.base import ROIHeads
from d2_maskrcnn.modeling.roi_heads.box_head import BoxPredictor, MaskRCNNBoxHead
from d2_maskrcnn.modeling.roi_heads.inference import fast_rcnn_inference, fast_rcnn_inference_single_image
from d2_maskrcnn.modeling.roi_heads.mask_head import BaseMaskHead, MaskRCNNMaskHead, mask_rcnn_inference, mask_rcnn_loss
from d2_maskrcnn.modeling.roi_heads.standard import StandardROIHeads, select_foreground_proposals
from d2_maskrcnn.modeling.roi_heads.targets import add_ground_truth_to_proposals
from d2_maskrcnn.modeling.rpn.anchor_generator import MaskRCNNAnchorGenerator
from d2_maskrcnn.modeling.rpn.proposals import find_top_rpn_proposals
from d2_maskrcnn.modeling.rpn.rpn import MaskRCNNRPN, MaskRCNNRPNHead
from d2_maskrcnn.modeling.sampling import sample_labels
from d2_maskrcnn.ops import ROIPooler
from detectron2 import modeling
from detectron2.layers import CNNBlockBase, cat
from detectron2.modeling import proposal_generator, roi_heads

# (registry of Detectron2, Detectron2's name of a component, our component).
REGISTERED = (
    (modeling.META_ARCH_REGISTRY, "GeneralizedRCNN", MaskRCNN),
    (modeling.BACKBONE_REGISTRY, "build_resnet_backbone", build_resnet),
    (modeling.BACKBONE_REGISTRY, "build_resnet_fpn_backbone", build_maskrcnn_resnet_fpn_backbone),
    (modeling.ANCHOR_GENERATOR_REGISTRY, "DefaultAnchorGenerator", MaskRCNNAnchorGenerator),
    (modeling.PROPOSAL_GENERATOR_REGISTRY, "RPN", MaskRCNNRPN),
    (proposal_generator.RPN_HEAD_REGISTRY, "StandardRPNHead", MaskRCNNRPNHead),
    (modeling.ROI_HEADS_REGISTRY, "StandardROIHeads", StandardROIHeads),
    (roi_heads.ROI_BOX_HEAD_REGISTRY, "FastRCNNConvFCHead", MaskRCNNBoxHead),
    (roi_heads.ROI_MASK_HEAD_REGISTRY, "MaskRCNNConvUpsampleHead", MaskRCNNMaskHead),
)
# Detectron2's names of parts that are in no registry.
PARTS = {
    "BaseMaskRCNNHead": BaseMaskHead,
    "BasicBlock": BasicBlock,
    "BasicStem": Stem,
    "BottleneckBlock": Bottleneck,
    "Box2BoxTransform": BoxCoder,
    "FPN": FPN,
    "FastRCNNOutputLayers": BoxPredictor,
    "LastLevelMaxPool": LastLevelMaxPool,
    "LastLevelP6P7": LastLevelP6P7,
    "Matcher": Matcher,
    "ROIHeads": ROIHeads,
    "ROIPooler": ROIPooler,
    "ResNet": ResNet,
    "ResNetBlockBase": CNNBlockBase,
    "add_ground_truth_to_proposals": add_ground_truth_to_proposals,
    "cat": cat,
    "fast_rcnn_inference": fast_rcnn_inference,
    "make_stage": make_stage,
    "fast_rcnn_inference_single_image": fast_rcnn_inference_single_image,
    "find_top_rpn_proposals": find_top_rpn_proposals,
    "mask_rcnn_inference": mask_rcnn_inference,
    "mask_rcnn_loss": mask_rcnn_loss,
    "select_foreground_proposals": select_foreground_proposals,
    "subsample_labels": sample_labels,
}


def register_zoo_names() -> None:
    """Register the components and export them from ``detectron2.modeling``. Call it once per process."""
    from detectron2._names import provide

    for registry, name, component in REGISTERED:
        registry._do_register(name, component)
        provide(**{name: component})
    provide(**PARTS)


if engine_info().name == "embedded":
    register_zoo_names()
