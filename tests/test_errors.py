import errno
import os
import re
import sys
import tempfile

import pytest
import torch

from d2_maskrcnn.errors import UserError, did_you_mean, doing, escape_formula, import_extra, one_line, run_main


def _raise(error):
    raise error


def test_success_is_zero():
    assert run_main(lambda: None) == 0


def test_bad_input_is_one_line_without_traceback(capsys):
    assert run_main(lambda: _raise(UserError("file a.json:\n  not   JSON"))) == 2
    assert capsys.readouterr().err == "error: file a.json: not JSON\n"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("dog", "dog"),
        ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"),
        (" @SUM(1)", "' @SUM(1)"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\t=1", "\\t=1"),
        ("a\x1b[31m\nb", "a\\x1b[31m\\nb"),
    ],
)
def test_cells_of_a_csv_file_are_text(text, cell):
    assert escape_formula(text) == cell


def test_ctrl_c(capsys):
    assert run_main(lambda: _raise(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


def read(path):
    with doing(f"reading {path}"):
        return {}["missing\nkey"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda: read("a.json"), "error: reading a.json: KeyError: 'missing\\\\nkey'; this is a fault of d2_maskrcnn"),
        (lambda: _raise(OSError(errno.ENOSPC, "No space left")), r"error: running .*No space left; free some space on"),
        (lambda: _raise(MemoryError("3 GB")), r"error: running .*: MemoryError: 3 GB; use smaller images"),
        (lambda: _raise(torch.OutOfMemoryError("3 GB")), r"error: running .*: OutOfMemoryError: 3 GB; use smaller"),
    ],
)
def test_an_unexpected_exception_is_one_line_and_a_file(fault, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_main(fault) == 1
    line = capsys.readouterr().err
    assert re.match(expected, line) and line.count("\n") == 1 and "Traceback" not in line
    (file,) = tmp_path.iterdir()
    assert str(file) in line and "Traceback (most recent call last)" in file.read_text()


def test_an_unexpected_exception_without_a_place_for_its_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert run_main(lambda: read("a.json")) == 1
    assert "D2_MASKRCNN_DEBUG=1 shows the traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENAMETOOLONG, "give a shorter name"),
        (errno.EACCES, "change the permissions of the file or folder"),
        (errno.ELOOP, "name the file itself"),
    ],
)
def test_a_path_that_cannot_be_used_is_bad_input(number, remedy, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_main(lambda: _raise(OSError(number, os.strerror(number), "a\nb"))) == 2
    assert capsys.readouterr().err == f"error: a b: {os.strerror(number)}; {remedy}\n"
    assert run_main(lambda: _raise(RuntimeError("Symlink loop from 'a'"))) == 2
    assert "Symlink loop from 'a'; name the file itself" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert run_main(lambda: os.stat("a" * 300)) == 2


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("D2_MASKRCNN_DEBUG", "1")
    with pytest.raises(KeyError):
        run_main(lambda: read("a.json"))


def test_other_exits_are_passed_on():
    with pytest.raises(SystemExit):
        run_main(lambda: _raise(SystemExit(3)))


def test_bad_input_is_not_renamed_by_what_was_being_done():
    with pytest.raises(UserError, match=r"^bad$"), doing("reading"):
        raise UserError("bad")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), (" a\r\n\tb ", "a b"), ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"), ("café 猫", "café 猫")],
)
def test_one_line_escapes_control_characters(text, expected):
    assert one_line(ValueError(text)) == expected


@pytest.mark.parametrize(
    ("name", "known", "cutoff", "expected"),
    [
        ("Circl", ["circle", "square"], 0.6, " Did you mean circle?"),
        ("circl", ["Circle"], 0.6, " Did you mean Circle?"),
        ("zebra", ["circle"], 0.6, ""),
        ("zebra", ["circle"], 0.0, " Did you mean circle?"),
        ("circle", [], 0.6, ""),
    ],
)
def test_did_you_mean(name, known, cutoff, expected):
    assert did_you_mean(name, known, cutoff) == expected


def test_missing_packages_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed: pip install \"d2_maskrcnn\[onnx\]\""):
        import_extra("onnxruntime", "onnx")
