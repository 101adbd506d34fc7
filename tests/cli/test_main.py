"""The command ``d2-maskrcnn``: its help, its errors, and what it imports."""

import os
import subprocess
import sys

import pytest

from d2_maskrcnn import example
from d2_maskrcnn._version import __version__
from d2_maskrcnn.cli import convert, export, predict
from d2_maskrcnn.cli import main as cli
from d2_maskrcnn.config import rules
from d2_maskrcnn.data.conversion import TARGETS
from d2_maskrcnn.exporters.export import WRITERS
from d2_maskrcnn.runtimes.metadata import SUFFIXES


def test_help_names_every_command_and_imports_nothing_heavy(repo_dir):
    code = (
        "import sys, contextlib, io\nfrom d2_maskrcnn.cli.main import COMMANDS, main\n"
        "for words in ([], *([name] for name in COMMANDS)):\n"
        "    with contextlib.suppress(SystemExit): main([*words, '--help'])\n"
        "heavy = {'torch', 'numpy', 'cv2', 'detectron2'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
    for name, command in cli.COMMANDS.items():
        assert f"{name:7}  {command.help}" in result.stdout  # in the list of commands
        assert f"  d2-maskrcnn {name}" in result.stdout  # an example in its own help


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(("word", "expected"), [("trian", "Did you mean train?"), ("xyz", "The commands are train,")])
def test_unknown_command(capsys, word, expected):
    assert cli.main([word]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and word in error and expected in error


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["predict", "a.pth", "a.jpg", "--treshold=0.5"], "--threshold"),
        (["predict", "a.pth", "a.jpg", "--jason", "a"], "--save-json"),
        (["train", "--dta", "a"], "--data"),
    ],
)
def test_unknown_options_suggest_the_nearest(capsys, words, option):
    assert cli.main(words) == 2
    assert f"; did you mean {option}?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data", "a.yaml"])
def test_a_training_of_a_path_without_its_option(capsys, tmp_path, name):
    path = tmp_path / name
    path.touch()
    assert cli.main(["train", str(path)]) == 2
    option = "--config-file" if path.suffix else "--data"
    assert f"{path}: name it with {option} {path}" in capsys.readouterr().err


def test_overwriting_is_named_by_its_flag(capsys, tmp_path):
    (tmp_path / "a.onnx").write_text("mine")
    weights = str(example.WEIGHTS)
    assert cli.main(["export", weights, "--output", str(tmp_path / "a.onnx")]) == 2
    assert "a.onnx: exists already; name another file, or add --overwrite" in capsys.readouterr().err


def test_a_training_of_nothing(capfd):
    assert cli.main(["train"]) == 2
    assert capfd.readouterr().err == (
        "error: train needs data or a config: add --data FOLDER, or --config-file with a file or name.\n"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["env", "--foo"], "d2-maskrcnn env: unrecognized arguments: --foo. d2-maskrcnn env --help lists the options."),
        (["convert", "a", "--to", "COCO", "--output", "b"], "argument --to: invalid choice: 'COCO'"),
        (["predict", "--threshold", "30"], "--threshold: 30: expected a number from 0 to 1"),
    ],
)
def test_bad_options_are_one_line(capsys, words, expected):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and expected in error


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        ("from d2_maskrcnn.cli.main import main; sys.exit(main(['env']))", "torch"),
        ("runpy.run_module('d2_maskrcnn.inspection', run_name='__main__', alter_sys=True)", "torch"),
        ("runpy.run_module('d2_maskrcnn', run_name='__main__', alter_sys=True)", "d2_maskrcnn.cli.main"),
        ("runpy.run_path('train_net.py', run_name='__main__')", "torch"),
    ],
)
def test_interrupt_during_the_imports(repo_dir, program, imported):
    code = (
        "import os, runpy, signal, sys, types\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{imported}': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"sys.argv = ['x', '--config-file', 'configs/quickstart.yaml', '--output', 'r']\n{program}"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("ImportError('libGL.so.1: cannot open shared object file', name='cv2')", "(libGL.so.1: cannot open"),
        ("ModuleNotFoundError('No module named cv2', name='cv2')", "pip install opencv-python-headless"),
    ],
)
def test_opencv_that_cannot_be_imported(repo_dir, tmp_path, failure, expected):
    (tmp_path / "cv2.py").write_text(f"raise {failure}\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(repo_dir)])}
    code = (
        "import d2_maskrcnn\nfrom d2_maskrcnn.cli.main import main\n"
        "print(main(['predict', '--example']))\nd2_maskrcnn.Predictor"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stdout == "2\n", result.stderr
    first, second, *_, last = result.stderr.splitlines()  # one line of the command, then the traceback of the library
    assert expected in first and second.startswith("Traceback") and expected in last


def test_module_of_the_package(repo_dir):
    words = [sys.executable, "-m", "d2_maskrcnn", "env"]
    result = subprocess.run(words, cwd=repo_dir, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "engine" in result.stdout and "torch" in result.stdout.lower()


def test_names_that_help_lists_without_imports_are_those_of_the_package():
    """The parsers have copies, so that help does not import the modules behind a command."""
    assert predict.PRECISIONS == rules.PRECISIONS
    assert tuple(TARGETS) == convert.FORMATS
    assert set(predict.ANNOTATION_FORMATS) == set(TARGETS) - {"voc"}
    assert set(export.FORMATS) == set(WRITERS)
    assert {suffix: name for name, suffix in export.SUFFIXES.items()} == SUFFIXES
    assert set(SUFFIXES) < set(predict.WEIGHT_SUFFIXES)


def test_the_name_of_an_export_is_checked_before_heavy_imports(repo_dir, tmp_path):
    code = (
        "import sys\nfrom d2_maskrcnn.cli.main import main\n"
        "status = main(['export', 'a.pth', '--output', 'o'])\n"
        "print(status, sorted({'torch', 'numpy', 'detectron2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(repo_dir)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "2 []\n"
    assert done.stderr == "error: o: expected a name that ends with .onnx for the format onnx.\n"


def test_the_home_folder_in_paths(tiny_shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["split", str(tiny_shapes / "annotations" / "instances_train.json"), "--output", "~/parts"]) == 0
    assert (tmp_path / "parts" / "instances_val.json").is_file()
    assert "in the dataset's folder" not in capsys.readouterr().out
