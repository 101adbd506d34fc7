import os

import pytest

from d2_maskrcnn.config.keys import get_value
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


@pytest.mark.parametrize("name", ["mrcnn_R101", "mrcnn_R101.yaml", "configs/mrcnn_R101.yaml"])
def test_configs_of_the_package_are_found_by_name(repo_dir, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(str(repo_dir / "configs" / "mrcnn_R101.yaml"))


def test_a_name_of_the_package_as_base(tmp_path):
    (tmp_path / "own.yaml").write_text("_BASE_: mrcnn_R101\nSEED: 5\n")
    cfg = load_config(str(tmp_path / "own.yaml"))
    assert (cfg.SEED, cfg.MODEL.RESNETS.DEPTH) == (5, 101)


def test_an_existing_file_has_precedence_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balloon.yaml").write_text("SEED: 7\n")
    (tmp_path / "quickstart").mkdir()
    assert load_config("balloon.yaml").SEED == 7
    assert load_config("quickstart").MODEL.ROI_HEADS.NUM_CLASSES == 4


@pytest.mark.parametrize(
    ("name", "expected"), [("mrcnn_R11", "Did you mean mrcnn_R101"), ("xyz", "without a path are balloon, base,")]
)
def test_a_name_that_is_no_config(name, expected):
    with pytest.raises(UserError, match=expected):
        load_config(name)


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


def test_several_bases_are_merged_in_their_order(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 2}\n")
    (tmp_path / "b.yaml").write_text("SOLVER: {MAX_ITER: 3}\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nSEED: 4\n")
    cfg = load_config(str(tmp_path / "leaf.yaml"))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SEED) == (2, 3, 4)


def test_a_base_in_another_folder_of_this_machine(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 4\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "leaf.yaml").write_text("_BASE_: ../base.yaml\n")
    assert load_config(str(tmp_path / "sub" / "leaf.yaml")).SEED == 4


@pytest.mark.parametrize(
    "address", ["https://host/x.yaml", "http://127.0.0.1:1/x.yaml", "detectron2://x.yaml", "s3://x"]
)
def test_only_local_files_are_read(tmp_path, address):
    (tmp_path / "x.yaml").write_text(f"_BASE_: '{address}'\n")
    for name in (address, str(tmp_path / "x.yaml")):
        with pytest.raises(UserError, match="only local files are read"):
            load_config(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SOLVER: [1\n", r"line \d+, column \d+: not valid YAML"),
        ("- 1\n", "expected a map of keys"),
        ("SOLVER: {BASE_LRR: 1.0}\n", r"unknown key SOLVER.BASE_LRR. Did you mean SOLVER.BASE_LR\?"),
        ("BASE_LR: 1.0\n", r"unknown key BASE_LR. Did you mean SOLVER.BASE_LR\?"),
        ("SOLVER: {MAX_ITER: many}\n", "SOLVER.MAX_ITER is 'many'; expected an integer, such as 40000"),
        ("SOLVER: 3\n", "SOLVER is a group of keys"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml .named as _BASE_ by .*: file not found"),
        ("_BASE_: config.yaml\n", "leads back to the file itself"),
        ("VERSION: 1\n", "only version 2 is supported"),
        ("_BASE_: 3\n", "expected the path of a YAML file"),
        ("_BASE_: [[a]]\n", "expected the path of a YAML file"),
        ("_BASE_: /dev/zero\n", "/dev/zero .* is not a file"),
        ("_BASE_: .\n", "is not a file"),
        ("_BASE_: ~nobody_of_that_name/x.yaml\n", "file not found"),
        ('_BASE_: "a\\0b"\n', "expected the path of a YAML file"),
        ("SEED: 1\nSEED: 2\n", r"line 2, column 1: not valid YAML \(the key SEED is given twice"),
        ("SOLVER: {MAX_ITER: 1, MAX_ITER: 2}\n", "the key MAX_ITER is given twice"),
        ("a: &a [x,x]\nb: &b [*a,*a]\n" + "c: &c [*b,*b]\nd: [*c,*c]\n", "unknown key a"),
        ("SOLVER: &a\n  STEPS: [*a]\n", "nested too deeply, or contain themselves"),
        ("DATASETS: {TRAIN: " + "[" * 5000 + "]" * 5000 + "}\n", "nested too deeply"),
        ("SEED: 2001-99-99\n", "not valid YAML"),
        ("SEED: !!binary x\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "unknown key|not valid YAML"),
        ("SOLVER: {BASE_LR: .nan}\n", "BASE_LR is nan; expected numbers"),
        ("SOLVER: {BASE_LR: .inf}\n", "BASE_LR is inf; expected 0 to"),
        ("SOLVER: {BASE_LR: null}\n", "BASE_LR is None; expected a number"),
        ("SOLVER: {MAX_ITER: true}\n", "MAX_ITER is True; expected an integer"),
        ("OUTPUT_DIR: 3\n", "OUTPUT_DIR is 3; expected text"),
        ('OUTPUT_DIR: "a\\0b"\n', "without control characters"),
        ("DATASETS: {TRAIN: a}\n", "DATASETS.TRAIN is 'a'; expected a list"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        load_config(str(path))
    message = str(error.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 1000


def test_aliases_that_expand_to_very_many_values(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="expand to more than"):
        load_config(str(tmp_path / "x.yaml"))


def test_a_pipe_and_a_large_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("#" * 2_000_000)
    with pytest.raises(UserError, match="is not a file"):
        load_config(str(tmp_path / "pipe.yaml"))
    with pytest.raises(UserError, match="is larger than 1024 KiB"):
        load_config(str(tmp_path / "large.yaml"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "x.yaml").write_bytes("OUTPUT_DIR: Überlauf\n".encode(encoding))
    assert load_config(str(tmp_path / "x.yaml")).OUTPUT_DIR == "Überlauf"


def test_latin_1_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes("OUTPUT_DIR: Über\n".encode("latin1"))
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(tmp_path / "x.yaml"))


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("MODEL: {WEIGHTS: ~/x.pth}\n")
    (tmp_path / "x.yaml").write_text(
        "_BASE_: ~/base.yaml\nOUTPUT_DIR: ~/out\nD2_MASKRCNN: {DATA: {TRAIN_JSON: ~/a.json}}\n"
    )
    cfg = load_config("~/x.yaml", ["D2_MASKRCNN.DATA.VAL_IMAGES", "~/images", "D2_MASKRCNN.WANDB.DIR", "~"])
    assert (f"{tmp_path}/x.pth", f"{tmp_path}/out") == (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
    data = cfg.D2_MASKRCNN.DATA
    assert (f"{tmp_path}/a.json", f"{tmp_path}/images") == (data.TRAIN_JSON, data.VAL_IMAGES)
    assert str(tmp_path) == cfg.D2_MASKRCNN.WANDB.DIR


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5", 0.5),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
        ("SOLVER.BASE_LR", "1e-3", 0.001),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.STEPS", "[5, 6]", (5, 6)),
        ("MODEL.MASK_ON", "True", True),
        ("D2_MASKRCNN.WANDB.NAME", "123", "123"),
        ("D2_MASKRCNN.WANDB.TAGS", "['a']", ["a"]),
    ],
)
def test_text_becomes_the_type_of_the_default(key, text, value):
    result = get_value(load_config("", [key, text]), key)
    assert result == value and type(result) is type(value)


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
        (["SOLVER.BASE_LR", "abc"], "is 'abc'; expected a number"),
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
