import pytest

from d2_maskrcnn.errors import UserError, did_you_mean, one_line, run_main


def _raise(error):
    raise error


def test_success_is_zero():
    assert run_main(lambda: None) == 0


def test_bad_input_is_one_line_without_traceback(capsys):
    assert run_main(lambda: _raise(UserError("file a.json:\n  not   JSON"))) == 2
    assert capsys.readouterr().err == "error: file a.json: not JSON\n"


def test_ctrl_c(capsys):
    assert run_main(lambda: _raise(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        run_main(lambda: _raise(SystemExit(3)))


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
