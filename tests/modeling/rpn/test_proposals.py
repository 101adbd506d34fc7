import pytest
import torch

from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.modeling.rpn.proposals import ProposalSettings, select_proposals

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
ANCHORS = [
    torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 20.0, 30.0, 30.0], [-50.0, -50.0, -40.0, -40.0]]
    ),
    torch.tensor([[0.0, 0.0, 10.0, 10.0], [25.0, 25.0, 60.0, 60.0]]),
]
LOGITS = [torch.tensor([[3.0, 2.0, 1.0, 5.0]]), torch.tensor([[4.0, 0.5]])]


def select(logits=None, deltas=None, training=False, **settings):
    logits = LOGITS if logits is None else logits
    deltas = [torch.zeros(*level.shape, 4) for level in logits] if deltas is None else deltas
    settings = ProposalSettings(
        **{"pre_nms_topk": 10, "post_nms_topk": 10, "nms_thresh": 0.7, "min_size": 0, **settings}
    )
    return select_proposals(ANCHORS, logits, deltas, [(40, 50)], CODER, settings, training).proposals[0]


def test_no_proposals():
    proposals = select(min_size=100)
    assert (
        len(proposals) == 0
        and proposals.proposal_boxes.tensor.shape == (0, 4)
        and proposals.objectness_logits.shape == (0,)
    )


def test_clipped_sorted_and_suppressed_by_level():
    proposals = select()
    # Dropped: the anchor outside the image, and the one with IoU 9/11. Kept: the same box on the other level.
    assert proposals.objectness_logits.tolist() == [4.0, 3.0, 1.0, 0.5]
    assert proposals.proposal_boxes.tensor.tolist()[-1] == [25.0, 25.0, 50.0, 40.0]
    assert proposals.image_size == (40, 50)


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ({"nms_thresh": 0.9}, [4.0, 3.0, 2.0, 1.0, 0.5]),
        ({"post_nms_topk": 2}, [4.0, 3.0]),
        ({"pre_nms_topk": 1}, [4.0]),  # the best anchor of the first level is outside the image
        ({"min_size": 10}, [0.5]),  # both sides must exceed it
        ({"min_size": 9.9}, [4.0, 3.0, 1.0, 0.5]),
    ],
)
def test_settings(settings, scores):
    assert select(**settings).objectness_logits.tolist() == scores


def test_deltas_move_the_boxes():
    deltas = [torch.zeros(1, 4, 4), torch.zeros(1, 2, 4)]
    deltas[0][0, 2] = torch.tensor([0.5, 0.0, 0.0, 0.0])  # half a width to the right
    assert [25.0, 20.0, 35.0, 30.0] in select(deltas=deltas).proposal_boxes.tensor.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["logits", "deltas"])
def test_non_finite_values(value, where):
    logits, deltas = [level.clone() for level in LOGITS], [torch.zeros(1, 4, 4), torch.zeros(1, 2, 4)]
    if where == "logits":
        logits[0][0, 0] = value
    else:
        deltas[0][0, 0, 0] = value
    proposals = select(logits, deltas)
    assert proposals.objectness_logits.tolist() == [4.0, 2.0, 1.0, 0.5]
    with pytest.raises(FloatingPointError, match="diverged"):
        select(logits, deltas, training=True)


def test_decoding_only_the_best_changes_nothing():
    """Against decoding all anchors first."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 200
    anchors = [torch.cat((corner, corner + 40), dim=1)]
    logits, deltas = torch.randn(2, 300, generator=generator), 0.2 * torch.randn(2, 300, 4, generator=generator)
    settings = ProposalSettings(50, 50, 1.0, 0)
    proposals = select_proposals(anchors, [logits], [deltas], [(220, 220)] * 2, CODER, settings, False).proposals
    for i in range(2):
        boxes = CODER.decode(deltas[i], anchors[0]).clamp(0, 220)
        order = logits[i].argsort(descending=True)[:50]
        torch.testing.assert_close(proposals[i].proposal_boxes.tensor, boxes[order])


def test_no_gradient_flows():
    logits = [level.clone().requires_grad_() for level in LOGITS]
    assert not select(logits).objectness_logits.requires_grad


def test_candidates():
    deltas = [torch.zeros(1, 4, 4), torch.zeros(1, 2, 4)]
    settings = ProposalSettings(pre_nms_topk=10, post_nms_topk=2, nms_thresh=0.7, min_size=0)
    selection = select_proposals(ANCHORS, LOGITS, deltas, [(40, 50)], CODER, settings, False)
    assert [index.tolist() for index in selection.anchors] == [[[3, 0, 1, 2]], [[0, 1]]]
    assert selection.boxes[0][0, 0].tolist() == [-50.0, -50.0, -40.0, -40.0]  # not clipped yet
    assert selection.levels().tolist() == [0, 0, 0, 0, 1, 1]
    assert selection.clipped[0].tolist() == [1, 2, 3, 4, 5]
    kept = selection.clipped[0][selection.kept[0]]
    assert kept.tolist() == [4, 1]
    assert torch.equal(selection.proposals[0].objectness_logits, torch.cat(selection.logits, dim=1)[0, kept])
