import copy

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.backbone.resnet import build_resnet
from d2_maskrcnn.modeling.backbone.stage import Stage
from detectron2.layers import ShapeSpec

WIDE = {"MODEL__RESNETS__STEM_OUT_CHANNELS": 32, "MODEL__RESNETS__RES2_OUT_CHANNELS": 128}
WIDE["MODEL__RESNETS__WIDTH_PER_GROUP"] = 32  # group norm has 32 groups


def pair_of_resnets(narrow, **overrides):
    """Return the same ResNet without and with checkpointing, both in training mode."""
    torch.manual_seed(0)
    cfg = narrow.cfg(D2_MASKRCNN__SOLVER__ACTIVATION_CHECKPOINTING=True, **overrides)
    saving = build_resnet(cfg, ShapeSpec(channels=3)).train()
    plain = copy.deepcopy(saving)
    for name in plain.stage_names:
        assert plain.get_submodule(name).activation_checkpointing
        plain.get_submodule(name).activation_checkpointing = False
    return plain, saving


def calls_of_blocks(model, name):
    """Count the calls of the first and the last block of a stage."""
    counts = [0, 0]

    def count(index):
        def hook(module, args):
            counts[index] += 1

        return hook

    for index in (0, -1):
        model.get_submodule(name)[index].register_forward_pre_hook(count(index))
    return counts


def test_an_empty_stage_and_an_empty_batch():
    stage = Stage()
    stage.activation_checkpointing = True
    x = torch.ones(1, requires_grad=True)
    assert stage(x) is x
    stage = Stage(ConvNorm(2, 2, 3, norm="BN"))
    stage.activation_checkpointing = True
    y = stage(torch.zeros(0, 2, 4, 4, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 2, 4, 4) and int(stage[0].norm.num_batches_tracked) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN", ""])
def test_outputs_gradients_and_statistics_are_the_same(narrow, norm, dtype):
    plain, saving = pair_of_resnets(narrow, MODEL__RESNETS__NORM=norm, MODEL__BACKBONE__FREEZE_AT=1, **WIDE)
    random_state = torch.get_rng_state()
    results = []
    for model in (plain.to(dtype), saving.to(dtype)):
        for seed in range(2):  # the second step sees the statistics that the first one leaves
            x = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=dtype)
            outputs = model(x)
            sum((y * y).mean() for y in outputs.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append({**outputs, **gradients, **dict(model.named_buffers())})
    assert results[0].keys() == results[1].keys() and len(results[0]) > 40
    for name, expected in results[0].items():
        assert expected.isfinite().all(), name
        assert torch.equal(results[1][name], expected), name
    assert torch.equal(torch.get_rng_state(), random_state)


def test_trained_stages_are_computed_twice_and_frozen_ones_once(narrow):
    plain, saving = pair_of_resnets(narrow, MODEL__BACKBONE__FREEZE_AT=2)
    for model, times in ((plain, 1), (saving, 2)):
        frozen, trained = calls_of_blocks(model, "res2"), calls_of_blocks(model, "res4")
        sum(y.sum() for y in model(torch.randn(1, 3, 64, 64)).values()).backward()
        assert frozen == [1, 1] and trained == [times, times]


def test_nothing_is_computed_twice_in_evaluation_or_without_gradients(narrow):
    _, saving = pair_of_resnets(narrow)
    calls = calls_of_blocks(saving, "res4")
    with torch.no_grad():
        saving(torch.randn(1, 3, 64, 64))
    sum(y.sum() for y in saving.eval()(torch.randn(1, 3, 64, 64)).values()).backward()
    assert calls == [2, 2]


@pytest.mark.parametrize(("depth", "kept"), [(50, 2), (101, 5)])
def test_few_outputs_of_blocks_stay_in_memory(narrow, depth, kept):
    plain, saving = pair_of_resnets(narrow, MODEL__RESNETS__DEPTH=depth)
    for model, expected in ((plain, len(plain.res4) - 1), (saving, kept)):
        storages = []
        for block in model.res4[:-1]:
            block.register_forward_hook(lambda _m, _a, y, s=storages: s.append(StorageWeakRef(y.untyped_storage())))
        outputs = model(torch.randn(1, 3, 64, 64))
        assert sum(not storage.expired() for storage in storages) == expected
        del outputs


def test_naive_repetition_would_update_the_statistics_twice(narrow):
    """The reference: without the copies of the statistics, PyTorch's checkpointing counts every batch twice."""
    plain, saving = pair_of_resnets(narrow, MODEL__RESNETS__NORM="BN", MODEL__BACKBONE__FREEZE_AT=0)
    x = torch.randn(1, 3, 64, 64)
    sum(y.sum() for y in saving(x).values()).backward()
    assert int(saving.res4[0].conv1.norm.num_batches_tracked) == 1
    block = plain.res2[0]
    checkpoint(block, torch.randn(1, 8, 16, 16, requires_grad=True), use_reentrant=False).sum().backward()
    assert int(block.conv1.norm.num_batches_tracked) == 2


@pytest.mark.parametrize(("freeze_at", "saves"), [(2, False), (1, True)])
def test_frozen_stages_save_nothing_for_the_backward_pass(narrow, freeze_at, saves):
    overrides = {"MODEL__RESNETS__OUT_FEATURES": ["res2"], "MODEL__BACKBONE__FREEZE_AT": freeze_at}
    model = build_resnet(narrow.cfg(**overrides), ShapeSpec(channels=3)).train()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        output = model(torch.randn(1, 3, 64, 64))["res2"]
    assert bool(saved) == output.requires_grad == saves
