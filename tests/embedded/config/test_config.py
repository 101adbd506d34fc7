import pytest

from detectron2.config import CfgNode, downgrade_config, get_cfg, global_cfg, set_global_cfg, upgrade_config
from detectron2.config.config import try_get_key


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "VERSION: 2\n"])
def test_file_without_settings_changes_nothing(write, text):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", text))
    assert cfg == get_cfg()


def test_bases_are_merged_in_order_and_below_the_file_itself(write):
    write("base/first.yaml", "SOLVER:\n  BASE_LR: 0.1\n  GAMMA: 0.2\n  MAX_ITER: 7\n")
    write("base/second.yaml", "SOLVER:\n  GAMMA: 0.3\n")
    write("base/both.yaml", "_BASE_: [first.yaml, second.yaml]\nSEED: 5\n")
    path = write("leaf.yaml", "_BASE_: base/both.yaml\nSOLVER:\n  MAX_ITER: 9\n")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.1, 0.3, 9, 5)


def test_base_may_be_absolute_or_in_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    base = write("base.yaml", "SEED: 3\n")
    for name in (base, "~/base.yaml"):
        cfg = get_cfg()
        cfg.merge_from_file(write("deep/er/leaf.yaml", f"_BASE_: {name!r}\n"))
        assert cfg.SEED == 3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("- a\n- b\n", ValueError, "must contain `KEY: value` pairs, not a list"),
        ("MODEL: {MASK_ON: [}\n", ValueError, "is not valid YAML"),
        ("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n", ValueError, "is not valid YAML"),
        ("MODEL:\n  MASKON: True\n", KeyError, "Non-existent config key: MODEL.MASKON"),
        ("SOLVER:\n  MAX_ITER: many\n", ValueError, "config key: SOLVER.MAX_ITER"),
        ("SOLVER: 3\n", ValueError, "Config key SOLVER is a section, it cannot be set to 3"),
        ("SOLVER:\n", ValueError, "Config key SOLVER is a section, it cannot be set to None"),
        ("SOLVER: {GAMMA: {A: 1}}\n", ValueError, "Config key SOLVER.GAMMA is a value (0.1), not a section"),
        ("_BASE_: a.yaml\n", ValueError, "is circular"),
        ("_BASE_: 5\n", ValueError, "file name or a list of file names, got 5"),
        ("_BASE_: [3]\n", ValueError, "got 3"),
        ("VERSION: -1\n", ValueError, "VERSION -1"),
        ("VERSION: 3\n", ValueError, "VERSION 3"),
    ],
)
def test_errors_name_the_file(write, text, error, message):
    path = write("a.yaml", text)
    with pytest.raises(error) as caught:
        get_cfg().merge_from_file(path)
    assert message in str(caught.value)
    assert "a.yaml" in str(caught.value)
    assert "\n" not in caught.value.args[0]


def test_missing_file_and_missing_base(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "nowhere.yaml"))
    path = write("leaf.yaml", "_BASE_: lost.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"lost\.yaml.*_BASE_ in .*leaf\.yaml"):
        get_cfg().merge_from_file(path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        get_cfg().merge_from_file(str(tmp_path))


def test_section_cannot_replace_an_inherited_value(write):
    write("base.yaml", "SEED: 3\n")
    with pytest.raises(ValueError, match=r"'SEED' is a section here but the value 3"):
        get_cfg().merge_from_file(write("leaf.yaml", "_BASE_: base.yaml\nSEED:\n  A: 1\n"))


def test_nothing_is_read_unsafely(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", "SEED: 3\n"), allow_unsafe=True)
    assert cfg.SEED == 3
    with pytest.raises(ValueError, match="not valid YAML"):
        cfg.merge_from_file(write("b.yaml", "OUTPUT_DIR: !!python/object/apply:os.getcwd []\n"), allow_unsafe=True)


def test_older_key_names(write):
    cfg = get_cfg()
    cfg.OF_THE_USER = 1
    assert upgrade_config(cfg) == cfg
    for version in (0, 1):
        older = downgrade_config(cfg, to_version=version)
        assert version == older.VERSION and older.MODEL.WEIGHT == "" and "WEIGHTS" not in older.MODEL
        assert ("RPN_HEAD" in older.MODEL) == (version == 0)
        assert upgrade_config(older) == cfg
    cfg.merge_from_file(write("a.yaml", "MODEL: {WEIGHT: a.pth}\nTEST: {AUG_ON: True}\n"))
    cfg.merge_from_file(write("b.yaml", "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Other}}\n"))
    assert (cfg.MODEL.WEIGHTS, cfg.TEST.AUG.ENABLED, cfg.MODEL.RPN.HEAD_NAME, cfg.VERSION) == (
        "a.pth",
        True,
        "Other",
        2,
    )
    with pytest.raises(ValueError, match="version 2 to version 1"):
        upgrade_config(cfg, 1)
    with pytest.raises(ValueError, match="version 2 to version 3"):
        downgrade_config(cfg, 3)


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        ([], "SEED", -1),
        (["SEED", "4"], "SEED", 4),
        (["DATASETS.TRAIN", "('a', 'b')"], "DATASETS.TRAIN", ("a", "b")),
        (["OUTPUT_DIR", "out/here"], "OUTPUT_DIR", "out/here"),
        (["SOLVER.WEIGHT_DECAY_BIAS", "0.1"], "SOLVER.WEIGHT_DECAY_BIAS", 0.1),
        (["SOLVER.AMP.ENABLED", True], "SOLVER.AMP.ENABLED", True),
    ],
)
def test_overrides(overrides, key, value):
    cfg = get_cfg()
    cfg.merge_from_list(overrides)
    assert try_get_key(cfg, key) == value


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["SEED"], ValueError, "'SEED' has no value"),
        (["SOLVER.LR", "1"], KeyError, "Non-existent config key: SOLVER.LR"),
        (["SEED.A", "1"], KeyError, "Non-existent config key: SEED.A"),
        (["_BASE_", "a.yaml"], KeyError, "_BASE_"),
        (["SEED", "1.5"], ValueError, "SEED"),
        (["SOLVER.AMP", "1"], ValueError, "SOLVER.AMP is a section: set one of ENABLED in it"),
    ],
)
def test_bad_overrides_change_nothing(overrides, error, message):
    cfg = get_cfg()
    with pytest.raises(error, match=message.replace(".", r"\.")):
        cfg.merge_from_list(["OUTPUT_DIR", "x", *overrides] if error is KeyError else overrides)
    assert cfg == get_cfg()


def test_frozen_config_refuses_changes():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    cfg.defrost()
    cfg.SEED = 1
    assert cfg.SEED == 1


def test_global_config():
    set_global_cfg(CfgNode({"OLD": 1}))
    set_global_cfg(CfgNode({"A": {"B": 2}}))
    assert global_cfg == CfgNode({"A": {"B": 2}})


def test_try_get_key():
    cfg = CfgNode({"A": {"B": 2}})
    assert try_get_key(cfg, default=4) == 4
    assert try_get_key(cfg, "X.Y", "A.B", default=4) == 2
    assert try_get_key(cfg, "A.B.C", "A.C") is None
