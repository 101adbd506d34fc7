import copy

import pytest
import yaml

from detectron2.config import CfgNode, get_cfg


def test_equal_detectron2s_defaults(shared_dir):
    """Every key and every value, numbers of the same type included."""
    reference = yaml.safe_load((shared_dir / "reference" / "cfg_defaults.yaml").read_text())
    assert list(flatten(yaml.safe_load(get_cfg().dump()))) == list(flatten(reference))


def flatten(node, prefix=""):
    for key, value in sorted(node.items()):
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", type(value), value


def test_resolved_config_of_the_model_zoo_loads(shared_dir):
    cfg = get_cfg()
    cfg.merge_from_file(str(shared_dir / "reference" / "mask_rcnn_R_101_FPN_3x.yaml"))
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.SOLVER.STEPS == (210000, 250000)


def test_dump_reads_back(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "(10, 20)", "MODEL.WEIGHTS", "a.pth", "SOLVER.WEIGHT_DECAY_BIAS", "0.5"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    values = yaml.safe_load(again.dump())
    assert values == yaml.safe_load(cfg.dump()) != yaml.safe_load(get_cfg().dump())


def test_get_cfg_gives_a_fresh_copy():
    cfg = get_cfg()
    before = copy.deepcopy(dict(flatten_types(cfg)))
    cfg.MODEL.PIXEL_MEAN.append(0.0)
    cfg.SOLVER.AMP.ENABLED = True
    assert dict(flatten_types(get_cfg())) == before


def flatten_types(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten_types(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("value", [[], [100], (100, 200)])
@pytest.mark.parametrize("key", ["SOLVER.STEPS", "INPUT.CROP.SIZE"])
def test_lists_stand_for_tuples_and_the_other_way_round(key, value):
    cfg = get_cfg()
    section, name = key.rsplit(".", 1)
    kind = {"SOLVER.STEPS": tuple, "INPUT.CROP.SIZE": list}[key]
    node = cfg
    for part in section.split("."):
        node = node[part]
    cfg.merge_from_list([key, value])
    assert node[name] == kind(value)
