import pytest

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.errors import UserError
from detectron2.config import get_cfg


def test_no_file_gives_the_defaults():
    cfg = load_config("")
    assert cfg.SOLVER == get_cfg().SOLVER
    assert cfg.D2_MASKRCNN.SOLVER.OPTIMIZER == "SGD"


@pytest.mark.parametrize("name", ["base", "mrcnn_R101", "mrcnn_R101_1x", "quickstart", "balloon"])
def test_every_config_loads(repo_dir, name):
    cfg = load_config(str(repo_dir / "configs" / f"{name}.yaml"))
    assert cfg.MODEL.META_ARCHITECTURE == "MaskRCNN"


def test_main_config_equals_the_zoos_but_for_component_names(repo_dir, shared_dir):
    ours = load_config(str(repo_dir / "configs" / "mrcnn_R101.yaml"))
    zoo = get_cfg()
    zoo.merge_from_file(str(shared_dir / "reference" / "mask_rcnn_R_101_FPN_3x.yaml"))

    def leaves(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield (
                    prefix + key,
                    [list(v) if isinstance(v, tuple) else v for v in value]
                    if isinstance(value, (list, tuple))
                    else value,
                )

    ours, zoo = dict(leaves(ours)), dict(leaves(zoo))
    different = {key for key in zoo if ours[key] != zoo[key]}
    assert all(key.endswith("NAME") or key == "MODEL.META_ARCHITECTURE" for key in different), different
    assert all(key.startswith("D2_MASKRCNN.") for key in set(ours) - set(zoo))


def test_values_from_base_file_and_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 1, MAX_ITER: 7}\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\nDATASETS: {TRAIN: [a, b]}\n")
    cfg = load_config(str(tmp_path / "leaf.yaml"), ["SOLVER.GAMMA", "1", "TEST.EVAL_PERIOD", "5"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA, cfg.TEST.EVAL_PERIOD) == (1.0, 8, 1.0, 5)
    assert tuple(cfg.DATASETS.TRAIN) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SOLVER: [1\n", r"line \d+, column \d+: not valid YAML"),
        ("- 1\n", "expected a map of keys"),
        ("SOLVER: {BASE_LRR: 1.0}\n", r"unknown key SOLVER.BASE_LRR. Did you mean SOLVER.BASE_LR\?"),
        ("BASE_LR: 1.0\n", r"unknown key BASE_LR. Did you mean SOLVER.BASE_LR\?"),
        ("SOLVER: {MAX_ITER: many}\n", "SOLVER.MAX_ITER = 'many' is a str; expected a int, such as 40000"),
        ("SOLVER: 3\n", "SOLVER is a group of keys"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml .named as _BASE_ by .*: file not found"),
        ("_BASE_: config.yaml\n", "leads back to the file itself"),
        ("VERSION: 1\n", "only configs of version 2"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        load_config(str(path))
    assert str(tmp_path) in str(error.value)


def test_a_config_never_runs_code(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(path))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["SOLVER.BASE_LR"], "expected pairs KEY VALUE"),
        (["SOLVER.BASE_LRR", "1"], r"Did you mean SOLVER.BASE_LR\?"),
        (["SOLVER.BASE_LR", "abc"], "expected a float"),
        (["SOLVER", "1"], "is a group of keys"),
        (["NO.SUCH.THING.AT.ALL", "1"], "unknown key NO.SUCH.THING.AT.ALL"),
    ],
)
def test_mistakes_on_the_command_line(opts, expected):
    with pytest.raises(UserError, match=expected):
        load_config("", opts)


def test_missing_file_names_the_nearest(repo_dir):
    with pytest.raises(UserError, match=r"Did you mean .*mrcnn_R101.yaml\?"):
        load_config(str(repo_dir / "configs" / "mrcnn_R110.yaml"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("D2_MASKRCNN.INSPECT.PICTURES", lambda c: c.INSPECT.IMAGES),
        ("D2_MASKRCNN.WANDB.NUM_PICTURES", lambda c: c.WANDB.NUM_IMAGES),
    ],
)
def test_earlier_names_of_keys_still_work(old, new, caplog):
    cfg = load_config("", [old, "5"])
    assert new(cfg.D2_MASKRCNN) == 5
    assert f"{old} is now called" in caplog.text
